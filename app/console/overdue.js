// The nodes whose deadline has passed, the oldest first; their time goes on while one looks.

import { get } from "./api.js";
import { h } from "./dom.js";
import { ago, asCurl, at, entity, field, filters, link, otherDomain, pager, state, table } from "./parts.js";
import { number, now, setClock, span } from "./text.js";

const KINDS = {
  ack: ["Acknowledgement", "accepted or awaiting ack, and the node has not acknowledged in time", "ack_deadline"],
  liveness: ["Liveness", "active, and no heartbeat came in time", "liveness_deadline"],
};

export const title = () => "Overdue";

const kindOf = (params) => (params.kind in KINDS ? params.kind : "ack");

export async function load(view, signal) {
  const { domain, params } = view;
  const own = kindOf(params);
  const other = own === "ack" ? "liveness" : "ack";
  const query = { domain, as_of: params.as_of };
  const began = Date.now();
  const [page, beside] = await Promise.all([
    get(`v1/overdue/${own}`, { ...query, limit: params.limit, cursor: params.cursor }, { signal }),
    get(`v1/overdue/${other}`, { ...query, limit: 1 }, { signal }),
  ]);
  if (!params.as_of && !params.cursor) setClock(page.data.as_of, began, Date.now());
  return { page: page.data, beside: beside.data };
}

export function view(view, { page, beside }) {
  const { params, domain } = view;
  const kind = kindOf(params);
  const [, meaning, column] = KINDS[kind];
  const own = { domain: otherDomain(domain) };
  const frozen = params.as_of ? Date.parse(params.as_of) : null;
  return [
    h(
      "nav",
      { class: "tabs", "aria-label": "Kinds of deadlines" },
      ...Object.keys(KINDS).map((name) =>
        h(
          "a",
          { key: name, href: link("overdue", { ...own, kind: name, as_of: params.as_of }), "aria-current": name === kind && "page" },
          KINDS[name][0],
          " ",
          h("span", { class: "count" }, seen(name === kind ? page : beside, name === kind)),
        ),
      ),
    ),
    h("p", { class: "muted" }, meaning, "; the time-out has not been told yet."),
    filters(view, "overdue", { ...own, kind }, field("As of", "as_of", params.as_of, { placeholder: "now, or 2026-01-01T12:00:00Z" })),
    h(
      "p",
      { class: "tools" },
      h("span", {}, "Compared with ", at(page.as_of)),
      page.next_deadline ? h("span", {}, " · next deadline ", ago(page.next_deadline)) : null,
      h("span", { class: "grow" }),
      asCurl(view, "GET", `v1/overdue/${kind}`, { query: { ...own, as_of: params.as_of, cursor: params.cursor } }),
    ),
    table(
      "Overdue nodes",
      [
        { name: "Overdue", number: true, view: (row) => h("strong", { class: "due late" }, span(late(row[column], frozen))) },
        { name: "State", view: (row) => state(row.current_state) },
        { name: "Entity", view: (row) => entity(row.entity_id, row.domain) },
        { name: "Type", view: (row) => row.node_type },
        { name: "Deadline", view: (row) => at(row[column]) },
        { name: "Heartbeat", view: (row) => ago(row.last_heartbeat_at) },
        { name: "Version", number: true, view: (row) => number(row.version) },
      ],
      page.items,
      { key: (row) => row.entity_id, none: "Nothing is overdue." },
    ),
    pager("overdue", { ...params, ...own }, page),
  ];
}

// How late a deadline is: at a moment that was asked for, or at present.
function late(time, frozen) {
  return ((frozen ?? now()) - Date.parse(time)) / 1000;
}

function seen(page, whole) {
  const count = page.items.length;
  return page.next_cursor ? `${number(count)}+` : whole ? number(count) : count ? "1" : "0";
}
