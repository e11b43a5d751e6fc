// JSON with its numbers exact. JavaScript's own numbers are exact up to 2^53 only; positions go up to 2^63.

const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|[{}[\],:]|true|false|null/g;
const LONG = /^-?\d{16,}$/;

// The value of a JSON text; an integer of 16 digits or more is given as text.
export function parse(text) {
  return JSON.parse(text.replace(TOKEN, (token) => (LONG.test(token) ? `"${token}"` : token)));
}

// The same text with one member a line. Names, values and numbers stay as the service wrote them.
export function pretty(text) {
  const parts = [];
  let depth = 0;
  let before = "";
  const line = () => parts.push("\n", "  ".repeat(depth));
  for (const [token] of text.matchAll(TOKEN)) {
    const closes = token === "}" || token === "]";
    if (closes) depth--;
    if (closes ? before !== "{" && before !== "[" : before === "{" || before === "[") line();
    parts.push(token === ":" ? ": " : token);
    if (token === "{" || token === "[") depth++;
    if (token === ",") line();
    before = token;
  }
  return parts.join("");
}
