// How the service is set up, and who may do what.

import { get } from "./api.js";
import { h } from "./dom.js";
import { ago, asCurl, at, card, facts, pager, refusal, table } from "./parts.js";
import { number, secondsTo } from "./text.js";

export const title = () => "System";

export async function load(view, signal) {
  const options = { signal };
  const [ready, system, keys, audit, overview] = await Promise.all([
    // That the service is not ready is something to show.
    get("readyz", {}, options).catch((error) => {
      if (!error.problem) throw error;
      return { data: null, error };
    }),
    get("v1/system", {}, options),
    part(get("v1/keys", {}, options)),
    part(get("v1/audit", { limit: 100, cursor: view.params.cursor }, options)),
    part(get("v1/overview", {}, options)),
  ]);
  return { ready, system: system.data, keys, audit, overview };
}

// A part that needs the database, which may be what is missing.
function part(asked) {
  return asked.then(
    ({ data }) => ({ data }),
    (error) => {
      if (error.name === "AbortError" || error.status === 401) throw error;
      return { error };
    },
  );
}

export function view(view, { ready, system, keys, audit, overview }) {
  return [
    h("div", { class: "columns" }, readiness(ready, overview), pools(system)),
    settings(system),
    card("Keys", keys.error ? refusal(keys.error) : keyTable(keys.data.items), h("p", { class: "tools" }, asCurl(view, "GET", "v1/keys"))),
    card("Audit", audit.error ? refusal(audit.error) : [auditTable(audit.data.items), pager("system", view.params, audit.data)]),
  ];
}

function readiness({ data, error }, overview) {
  const breakers = overview.data?.operations?.breakers ?? [];
  return card(
    "Readiness",
    facts([
      ["Status", data ? h("span", { class: "good" }, data.status) : h("span", { class: "bad" }, "not ready")],
      data?.revision && ["Schema", data.revision],
      data?.read_database && ["Read database", h("span", { class: "warn" }, data.read_database)],
      error && ["Reason", h("span", { class: "bad" }, error.message)],
      ...breakers.map(({ name, is_open: isOpen }) => [
        `Breaker ${name}`,
        isOpen ? h("span", { class: "bad" }, "open: calls are refused") : "closed",
      ]),
    ]),
  );
}

function pools({ version, pid, pools: all }) {
  return card(
    "Process",
    facts([
      ["Version", version],
      ["Process id", h("span", {}, String(pid), h("span", { class: "muted" }, " of the worker that answered"))],
    ]),
    table(
      "Pools",
      [
        { name: "Pool", view: (row) => row.name },
        { name: "In use", number: true, view: (row) => number(row.in_use) },
        { name: "Open", number: true, view: (row) => number(row.open) },
        { name: "At most", number: true, view: (row) => number(row.most) },
        { name: "Waiting", number: true, view: (row) => h("span", { class: row.waiting ? "bad" : "" }, number(row.waiting)) },
      ],
      all,
      { key: (row) => row.name },
    ),
  );
}

function settings({ settings: changed }) {
  return card(
    "Settings that differ from their defaults",
    table(
      "Settings",
      [
        { name: "Setting", view: (row) => h("code", {}, row.name) },
        { name: "Value", view: (row) => (row.value === null ? h("span", { class: "muted" }, "a secret") : h("code", { class: "wrap" }, row.value)) },
        { name: "Default", view: (row) => h("span", { class: "muted wrap" }, row.default ?? "none") },
      ],
      changed,
      { key: (row) => row.name, none: "Every setting has its default." },
    ),
  );
}

function keyTable(items) {
  return table(
    "Keys",
    [
      { name: "Name", view: (row) => row.name },
      { name: "Id", view: (row) => h("code", {}, row.id) },
      { name: "State", view: keyState },
      { name: "Scopes", view: (row) => h("span", { class: "wrap" }, row.scopes.join(", ")) },
      { name: "Domains", view: (row) => row.domains.join(", ") || "–" },
      { name: "Workflows", view: (row) => row.workflow_prefixes.map((each) => each || "*").join(", ") || "–" },
      { name: "Expires", view: (row) => ago(row.expires_at) },
      { name: "Last used", view: (row) => row.last_used_on ?? "never" },
      { name: "Made by", view: (row) => row.created_by },
    ],
    items,
    { key: (row) => row.id, none: "There is no key: pqs keys create makes one." },
  );
}

function keyState({ revoked_at: revoked, expires_at: expires }) {
  if (revoked) return h("span", { class: "muted" }, "revoked ", ago(revoked));
  return secondsTo(expires) > 0 ? h("span", { class: "good" }, "live") : h("span", { class: "muted" }, "expired");
}

function auditTable(items) {
  return table(
    "Audit",
    [
      { name: "When", view: (row) => at(row.at) },
      { name: "Who", view: (row) => row.principal },
      { name: "Act", view: (row) => h("code", {}, row.action) },
      { name: "Of what", view: (row) => h("span", { class: "wrap" }, row.target) },
      { name: "Outcome", view: (row) => row.outcome },
      { name: "From", view: (row) => row.peer ?? "–" },
    ],
    items,
    { key: (row) => String(row.id), none: "Nothing is noted." },
  );
}
