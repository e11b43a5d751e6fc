// The feed, as it comes: the newest change on top. A pause keeps what is there, and what comes meanwhile is read after it.

import { get } from "./api.js";
import { h } from "./dom.js";
import { ago, asCurl, button, choice, entity, field, filters, otherDomain, position, state, stateChoice, table } from "./parts.js";
import { number, plural, words } from "./text.js";

const MOST = 500; // changes that are kept
const PAGE = 200; // changes of one answer
const PAGES = 5; // answers in one interval
const NAMES = ["state", "node_type", "type", "entity_id"];

export const title = () => "Changes";

const asked = ({ params, domain }) => ({ domain, ...Object.fromEntries(NAMES.map((name) => [name, params[name]])) });

export async function load(view, signal) {
  const { memory, params } = view;
  memory.items ??= [];
  memory.next ??= params.from === "start" ? "start" : "now";
  memory.since ??= new Date().toISOString();
  if (!memory.paused) {
    for (let page = 0; page < PAGES; page++) {
      const { data } = await get("v1/changes", { ...asked(view), after: memory.next, limit: PAGE }, { signal });
      memory.next = data.next;
      memory.items = [...data.items.toReversed(), ...memory.items].slice(0, MOST);
      memory.behind = !data.caught_up;
      if (data.caught_up) break;
    }
  }
  return { items: memory.items, since: memory.since, behind: memory.behind, paused: memory.paused };
}

export function view(view, { items, since, behind }) {
  const { params, memory, domain } = view;
  const own = { domain: otherDomain(domain) };
  return [
    filters(
      view,
      "changes",
      own,
      stateChoice([params.state ?? []].flat()),
      h(
        "div",
        { class: "fields" },
        field("Event type", "type", [params.type ?? []].flat()[0], { placeholder: "registration.activated", spellcheck: "false" }),
        field("Node type", "node_type", params.node_type),
        field("Entity", "entity_id", [params.entity_id ?? []].flat()[0], { spellcheck: "false" }),
        choice("From", "from", params.from ?? "", [
          ["", "now"],
          ["start", "the oldest that is kept"],
        ]),
      ),
    ),
    h(
      "p",
      { class: "tools" },
      button(
        memory.paused ? "Go on" : "Pause",
        () => {
          memory.paused = !memory.paused;
          view.refresh();
          view.render();
        },
        { "aria-pressed": memory.paused ? "true" : "false" },
      ),
      h("span", { role: "status" }, memory.paused ? "Paused." : behind ? "Catching up…" : "Live."),
      h("span", { class: "muted" }, `${plural(items.length, "change")} shown, at most ${number(MOST)}`),
      h("span", { class: "grow" }),
      asCurl(view, "GET", "v1/changes", { query: { ...asked(view), after: "now", wait: 30 } }),
    ),
    table(
      "Changes",
      [
        { name: "Happened", view: (row) => ago(row.occurred_at) },
        { name: "Entity", view: (row) => entity(row.entity_id, row.domain) },
        { name: "Before", view: (row) => (row.before ? state(row.before) : h("span", { class: "none" }, "–")) },
        { name: "After", view: (row) => state(row.current_state) },
        { name: "By", view: (row) => [h("code", {}, row.type), row.outcome === "applied" ? null : ` ${words(row.outcome)}`] },
        { name: "Type", view: (row) => row.node_type },
        { name: "Position", view: (row) => position(row.stands_at) },
        { name: "Version", number: true, view: (row) => number(row.version) },
      ],
      items,
      {
        key: (row) => String(row.id),
        none: params.from === "start" ? "No change is kept that matches." : ["No change since ", ago(since), "."],
      },
    ),
  ];
}
