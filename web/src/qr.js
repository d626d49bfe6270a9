// A text as a QR code (ISO/IEC 18004): bytes, error correction level L, versions 1 to 9.

// By version: codewords of data in a block, of error correction in a block, blocks, middles of alignment patterns.
const VERSIONS = [null,
  [19, 7, 1, []], [34, 10, 1, [6, 18]], [55, 15, 1, [6, 22]], [80, 20, 1, [6, 26]], [108, 26, 1, [6, 30]],
  [68, 18, 2, [6, 34]], [78, 20, 2, [6, 22, 38]], [97, 24, 2, [6, 24, 42]], [116, 30, 2, [6, 26, 46]],
];

const MASKS = [
  (x, y) => (x + y) % 2, (x, y) => y % 2, (x) => x % 3, (x, y) => (x + y) % 3,
  (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2, (x, y) => ((x * y) % 2) + ((x * y) % 3),
  (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2, (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2,
];

const times2 = (a) => ((a << 1) ^ (a & 0x80 ? 0x11d : 0));
function times(a, b) {
  let product = 0;
  for (; b > 0; b >>= 1, a = times2(a)) if (b & 1) product ^= a;
  return product;
}

// Reed-Solomon: the rest of data * x^count by (x - 1)(x - 2)(x - 4)...
function correctionOf(data, count) {
  const generator = Array(count).fill(0);
  generator[count - 1] = 1;
  for (let i = 0, root = 1; i < count; i++, root = times2(root)) {
    for (let j = 0; j < count; j++) generator[j] = times(generator[j], root) ^ (generator[j + 1] ?? 0);
  }
  const rest = Array(count).fill(0);
  for (const byte of data) {
    const factor = byte ^ rest.shift();
    rest.push(0);
    generator.forEach((value, i) => { rest[i] ^= times(value, factor); });
  }
  return rest;
}

// A number followed by its check bits.
function checked(number, bits, generator) {
  let rest = number;
  for (let i = 0; i < bits; i++) rest = (rest << 1) ^ (rest >> (bits - 1) ? generator : 0);
  return (number << bits) | rest;
}

// Mode, length, bytes, end, padding; in blocks with their correction, woven into each other.
function codewordsOf(bytes, [size, correction, blocks]) {
  const bits = [...`0100${bytes.length.toString(2).padStart(8, "0")}`, ...[...bytes].flatMap((byte) => [...byte.toString(2).padStart(8, "0")]), ..."0000"];
  const data = [];
  for (let i = 0; i < bits.length; i += 8) data.push(parseInt(bits.slice(i, i + 8).join("").padEnd(8, "0"), 2));
  for (let pad = 0xec; data.length < size * blocks; pad ^= 0xec ^ 0x11) data.push(pad);
  const parts = Array.from({ length: blocks }, (_, i) => data.slice(i * size, (i + 1) * size));
  const ends = parts.map((part) => correctionOf(part, correction));
  const weave = (lists, count) => Array.from({ length: count }, (_, i) => lists.map((list) => list[i])).flat();
  return [...weave(parts, size), ...weave(ends, correction)];
}

// What every code of the version has: undefined where data goes.
function framed(version, middles) {
  const side = 17 + 4 * version;
  const rows = Array.from({ length: side }, () => Array(side));
  const square = (left, top, reach, isDark) => {
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) if (rows[top + y] && left + x >= 0 && left + x < side) rows[top + y][left + x] = isDark(Math.max(Math.abs(x), Math.abs(y)));
    }
  };
  for (let i = 0; i < side; i++) rows[6][i] = rows[i][6] = i % 2 === 0;
  for (const [x, y] of [[3, 3], [side - 4, 3], [3, side - 4]]) square(x, y, 4, (far) => far !== 2 && far !== 4);
  const last = middles.at(-1);
  for (const y of middles) for (const x of middles) if (!((x === 6 && (y === 6 || y === last)) || (x === last && y === 6))) square(x, y, 2, (far) => far !== 1);
  if (version >= 7) {
    const bits = checked(version, 12, 0x1f25);
    for (let i = 0; i < 18; i++) rows[Math.floor(i / 3)][side - 11 + (i % 3)] = rows[side - 11 + (i % 3)][Math.floor(i / 3)] = Boolean((bits >> i) & 1);
  }
  return rows;
}

function setFormat(rows, mask) {
  const side = rows.length;
  const bits = checked(0b01000 | mask, 10, 0x537) ^ 0x5412;
  const bit = (i) => Boolean((bits >> i) & 1);
  for (let i = 0; i < 15; i++) {
    rows[i < 6 ? i : i < 8 ? i + 1 : side - 15 + i][8] = bit(i);
    rows[8][i < 8 ? side - 1 - i : i < 9 ? 7 : 14 - i] = bit(i);
  }
  rows[side - 8][8] = true;
}

// Two columns at a time, from the right, up and down in turn.
function fill(rows, codewords) {
  const side = rows.length;
  let at = 0;
  for (let right = side - 1, isUp = true; right > 0; right -= right === 8 ? 3 : 2, isUp = !isUp) {
    for (let i = 0; i < side; i++) {
      const y = isUp ? side - 1 - i : i;
      for (const x of [right, right - 1]) {
        if (rows[y][x] === undefined) {
          rows[y][x] = Boolean((codewords[at >> 3] >> (7 - (at & 7))) & 1);
          at++;
        }
      }
    }
  }
}

// How hard it is to read: long runs, and blocks of one colour.
function penaltyOf(rows) {
  let penalty = 0;
  const side = rows.length;
  for (const of of [(i, j) => rows[i][j], (i, j) => rows[j][i]]) {
    for (let i = 0; i < side; i++) {
      for (let j = 1, run = 1; j <= side; j++, run++) {
        if (j < side && of(i, j) === of(i, j - 1)) continue;
        penalty += run >= 5 ? run - 2 : 0;
        run = 0;
      }
    }
  }
  for (let y = 1; y < side; y++) for (let x = 1; x < side; x++) penalty += rows[y][x] === rows[y][x - 1] && rows[y][x] === rows[y - 1][x] && rows[y][x] === rows[y - 1][x - 1] ? 3 : 0;
  return penalty;
}

// Rows of true (dark) and false; null for a text that is too long.
export function qrCode(text) {
  const bytes = new TextEncoder().encode(text);
  const version = VERSIONS.findIndex((one) => one && bytes.length + 2 <= one[0] * one[2]);
  if (version < 0) return null;
  const frame = framed(version, VERSIONS[version][3]);
  setFormat(frame, 0); // so that no data goes there
  let best;
  for (let mask = 0; mask < MASKS.length; mask++) {
    const rows = frame.map((row) => [...row]);
    fill(rows, codewordsOf(bytes, VERSIONS[version]));
    for (const [y, row] of rows.entries()) for (const x of row.keys()) if (frame[y][x] === undefined && MASKS[mask](x, y) === 0) row[x] = !row[x];
    setFormat(rows, mask);
    const penalty = penaltyOf(rows);
    if (!best || penalty < best.penalty) best = { rows, penalty };
  }
  return best.rows;
}
