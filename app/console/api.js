// The calls of the service, which are those that everybody makes. Addresses are relative to the console's own, so they
// hold under whatever prefix of a proxy.

import { parse } from "./json.js";

const BASE = new URL("..", location.href);
const AWAY = new Set([502, 503, 504]);
const { acts, auth } = document.documentElement.dataset;

export const readOnly = acts === "none";
export const needsKey = auth !== "none";
export const hasIssuer = auth === "oidc"; // at which people sign in

// Who has signed in: {principal, scopes, domains, token}, or all null. With a session the browser sends its cookie; a token
// of OpenID Connect, and a key where the browser keeps no such cookie, is held in memory until the page is left.
export let session = { principal: null };
let bearer = null;

export function authorization() {
  return bearer ? { Authorization: `Bearer ${bearer}` } : {};
}

// Ask who has signed in.
export async function findSession() {
  session = (await get("ui/session")).data;
}

// Sign in with a key or a token. Raises Refusal.
export async function signIn(text) {
  bearer = null;
  if (text.startsWith("pqs_")) {
    await call("POST", "ui/session", { body: { key: text } });
    await findSession();
    if (session.principal) return;
  }
  bearer = text;
}

export async function signOut() {
  bearer = null;
  session = (await call("DELETE", "ui/session")).data;
}

export const isSignedIn = () => bearer !== null || session.principal !== null;

// An answer that is not a success. `away` is true where the service, or what it stands on, does not answer.
export class Refusal extends Error {
  constructor(message, { status = 0, problem = null, away = false } = {}) {
    super(message);
    this.status = status;
    this.problem = problem;
    this.away = away;
  }

  // The faults of the input: where, and what.
  get faults() {
    return this.problem?.errors ?? [];
  }
}

// The address of a call. Values that are null, undefined or "" are left out; arrays are repeated.
export function address(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    for (const each of [value].flat()) {
      if (each !== null && each !== undefined && each !== "") url.searchParams.append(name, each);
    }
  }
  return url;
}

// One segment of a path. A browser takes "." and ".." for steps in the path, however they are written.
export function segment(text) {
  if (text === "." || text === "..") throw new Refusal(`a browser cannot ask for ${text}; curl --path-as-is can`);
  return encodeURIComponent(text);
}

// Make a call. Returns {status, data, text, headers}; raises Refusal.
export async function call(method, path, { query, body, headers = {}, signal } = {}) {
  const given = { Accept: "application/json", ...authorization(), ...headers };
  if (body !== undefined) given["Content-Type"] = "application/json";
  if (method !== "GET" && session.token) given["PQS-Token"] = session.token;
  let answer;
  let text;
  try {
    answer = await fetch(address(path, query), {
      method,
      headers: given,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "same-origin",
    });
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the service does not answer", { away: true });
  }
  const isJson = /json/.test(answer.headers.get("Content-Type") ?? "");
  const data = isJson && text ? parse(text) : null;
  if (answer.ok) return { status: answer.status, data, text, headers: answer.headers };
  const said = data?.detail ?? data?.title ?? `the service answered with ${answer.status}`;
  throw new Refusal(said, { status: answer.status, problem: data, away: AWAY.has(answer.status) });
}

export const get = (path, query, options) => call("GET", path, { query, ...options });

// The same call for a terminal.
export function curl(method, path, { query, body, headers = {} } = {}) {
  const words = ["curl", "-sS"];
  if (method !== "GET") words.push("-X", method);
  if (needsKey) words.push("-H", '"Authorization: Bearer $PQS_TOKEN"');
  for (const [name, value] of Object.entries(headers)) words.push("-H", quoted(`${name}: ${value}`));
  if (body !== undefined) words.push("--json", quoted(JSON.stringify(body)));
  return [...words, quoted(address(path, query).href)].join(" ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

// Whether the service has a call, by its OpenAPI document, which is asked for once.
let documented = null;

export async function hasCall(path) {
  documented ??= get("openapi.json").then(
    ({ data }) => new Set(Object.keys(data.paths)),
    () => (documented = null), // it is asked for again
  );
  return (await documented)?.has(path) ?? false;
}
