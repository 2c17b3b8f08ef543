// Numbers, sizes, spans and times, in the words of the command line.

const NUMBERS = new Intl.NumberFormat("en");
const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const MINUTE = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export function number(value) {
  return NUMBERS.format(value);
}

/** `1 report`, `2 reports`. */
export function count(value, one, many) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

/** Of something each second. */
export function rate(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? number(Math.round(value)) : value === 0 ? "0" : value.toFixed(1);
}

/** Short enough for an axis: `1.5k`. */
export function short(value) {
  const [size, unit] = value >= 1e9 ? [1e9, "G"] : value >= 1e6 ? [1e6, "M"] : value >= 1e3 ? [1e3, "k"] : [1, ""];
  return `${Number((value / size).toPrecision(3))}${unit}`;
}

/** A size, in the unit that fits. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit + 1 < units.length) [value, unit] = [value / 1024, unit + 1];
  return unit === 0 ? `${bytes} B` : `${value.toFixed(1)} ${units[unit]}`;
}

/** A span, in its two largest units. */
export function age(seconds) {
  let left = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [name, length] of [["d", 86_400], ["h", 3_600], ["m", 60], ["s", 1]]) {
    const some = Math.floor(left / length);
    left -= some * length;
    if (some > 0 || (name === "s" && parts.length === 0)) parts.push(`${some}${name}`);
  }
  return parts.slice(0, 2).join(" ");
}

/** The span between two times of the service, so that no other clock comes into it; null if there is none. */
export function between(from, to) {
  const span = (Date.parse(to) - Date.parse(from)) / 1_000;
  return Number.isFinite(span) && span >= 0 ? span : null;
}

/** A time of day here, from milliseconds or RFC 3339. */
export function clock(at) {
  const date = new Date(at);
  return Number.isNaN(date.getTime()) ? "–" : TIME.format(date);
}

export function minute(at) {
  return MINUTE.format(new Date(at));
}

/** A time here, with its day unless that is today. */
export function moment(at) {
  const date = new Date(at);
  if (at === null || at === undefined || Number.isNaN(date.getTime())) return "–";
  const isToday = date.toDateString() === new Date().toDateString();
  // Year first, which nobody reads in two ways.
  const day = [date.getFullYear(), date.getMonth() + 1, date.getDate()].map((part) => String(part).padStart(2, "0")).join("-");
  return isToday ? TIME.format(date) : `${day} ${TIME.format(date)}`;
}
