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
