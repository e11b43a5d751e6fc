// Numbers, times and spans as text.

const NUMBER = new Intl.NumberFormat("en");

// A whole number with thousands; what is exact as text stays text.
export function number(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "string" ? value : NUMBER.format(value);
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${Number(count) === 1 ? one : many}`;
}

// How far the service's clock is ahead of the browser's, in milliseconds: deadlines are the service's.
let ahead = 0;

export function setClock(serverTime, askedAt, answeredAt) {
  ahead = Date.parse(serverTime) - (askedAt + answeredAt) / 2;
}

export function now() {
  return Date.now() + ahead;
}

// Seconds from now until a time; negative after it.
export function secondsTo(time) {
  return (Date.parse(time) - now()) / 1000;
}

// A span in its two largest units: "2 d 4 h", "3 min 20 s", "4.5 s".
export function span(seconds) {
  const whole = Math.abs(seconds);
  if (whole < 10) return `${(Math.floor(whole * 10) / 10).toFixed(1)} s`;
  const units = [
    ["d", 86_400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const index = Math.max(units.findIndex(([, size]) => whole >= size), 0);
  const [name, size] = units[index];
  const first = `${number(Math.floor(whole / size))} ${name}`;
  const next = units[index + 1];
  if (!next) return first;
  const rest = Math.floor((whole % size) / next[1]);
  return rest ? `${first} ${rest} ${next[0]}` : first;
}

// A time of the service, in the browser's zone: "2026-01-01 12:00:00".
export function local(time, { fraction = false } = {}) {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return String(time);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return `${day} ${clock}${fraction ? `.${String(at.getMilliseconds()).padStart(3, "0")}` : ""}`;
}

export function bytes(count) {
  return count >= 1_048_576 ? `${(count / 1_048_576).toFixed(1)} MiB` : `${number(count)} B`;
}

// A state or another word of the API for people: "ack_timed_out" becomes "ack timed out".
export function words(name) {
  return String(name).replaceAll("_", " ");
}

export const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
