export function size(mib) {
  if (mib === undefined || mib === null) return "";
  return mib >= 1024 ? `${+(mib / 1024).toFixed(1)} GiB` : `${mib} MiB`;
}

export function ago(seconds) {
  if (!seconds) return "";
  const past = Math.max(0, Date.now() / 1000 - seconds);
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (past >= length) {
      const count = Math.floor(past / length);
      return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
    }
  }
  return "just now";
}

export const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");

export const tags = (object) =>
  Object.entries(object.tags ?? {}).map(([name, value]) => (value ? `${name}=${value}` : name)).join(" ");

export const nameOf = (object) => object.name ?? object.id;

// 10000000: "10 M"; the unit comes behind it.
export function rate(number) {
  const units = ["", "K", "M", "G", "T"];
  let unit = 0;
  for (; number >= 10000 && unit < units.length - 1; unit++) number /= 1000;
  return `${+number.toFixed(1)} ${units[unit]}`;
}

export function bytes(number) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit++) number /= 1024;
  return `${+number.toFixed(1)} ${units[unit]}`;
}

export function span(seconds) {
  const [count, unit] = seconds % 3600 === 0 ? [seconds / 3600, "hour"] : seconds % 60 === 0 ? [seconds / 60, "minute"] : [seconds, "second"];
  return `${count} ${unit}${count === 1 ? "" : "s"}`;
}

// 5400: "1 h 30 min"; of the biggest two units.
export function duration(seconds) {
  const parts = [["h", Math.floor(seconds / 3600)], ["min", Math.floor(seconds / 60) % 60], ["s", Math.floor(seconds) % 60]];
  const first = parts.findIndex(([, count]) => count > 0);
  if (first < 0) return "0 s";
  return parts.slice(first, first + 2).filter(([, count]) => count > 0).map(([unit, count]) => `${count} ${unit}`).join(" ");
}
