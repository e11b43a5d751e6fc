// The entities of a domain, in the order of their ids, narrowed by filters that the address holds.

import { address, authorization, curl, get } from "./api.js";
import { h } from "./dom.js";
import { ago, asCurl, button, copy, deadline, entity, field, filters, link, otherDomain, pager, state, stateChoice, table } from "./parts.js";
import { now, number } from "./text.js";

const CALL = "v1/entities";
const NAMES = ["state", "node_type", "capability", "capabilities", "id_prefix", "event_id", "updated_before", "updated_since"];
const NDJSON = "application/x-ndjson";

export const title = () => "Entities";

function asked({ params, domain }, extra = {}) {
  const query = { domain, ...extra };
  for (const name of NAMES) query[name] = params[name];
  return query;
}

export async function load(view, signal) {
  const { limit, cursor } = view.params;
  return (await get(CALL, asked(view, { limit, cursor }), { signal })).data;
}

export function view(view, data) {
  const { params, domain } = view;
  const chosen = [params.state ?? []].flat();
  const own = { domain: otherDomain(domain) };
  const all = asked(view);
  return [
    filters(
      view,
      "entities",
      own,
      stateChoice(chosen),
      h(
        "div",
        { class: "fields" },
        field("Node type", "node_type", params.node_type),
        field("Capability", "capability", [params.capability ?? []].flat()[0], { placeholder: "such as postgres" }),
        field("Id begins with", "id_prefix", params.id_prefix, { spellcheck: "false" }),
        field("Last event", "event_id", params.event_id, { spellcheck: "false" }),
        field("Capabilities contain", "capabilities", params.capabilities, { placeholder: '{"gpu": true}', spellcheck: "false" }),
        field("Updated before", "updated_before", params.updated_before, { placeholder: "2026-01-01T12:00:00Z" }),
        field("Updated since", "updated_since", params.updated_since, { placeholder: "2026-01-01T12:00:00Z" }),
      ),
    ),
    h(
      "p",
      { class: "tools" },
      h("span", { class: "muted" }, "Quiet for "),
      ...[5, 60, 1440].map((minutes) =>
        h(
          "button",
          {
            key: minutes,
            type: "button",
            class: "quiet",
            onclick: () => {
              const moment = new Date(now() - minutes * 60_000).toISOString();
              view.go(link("entities", { ...own, ...params, cursor: null, updated_before: moment }));
            },
          },
          minutes < 60 ? `${minutes} min` : minutes < 1440 ? "1 h" : "1 day",
        ),
      ),
      h("span", { class: "grow" }),
      asCurl(view, "GET", CALL, { query: asked(view, { limit: params.limit, cursor: params.cursor }) }),
      copy("Copy curl for all rows", curl("GET", CALL, { query: all, headers: { Accept: NDJSON } }), view),
      button("Download all as NDJSON", () => download(view, all), { class: "quiet" }),
    ),
    table(
      "Entities",
      [
        { name: "State", view: (row) => state(row.current_state) },
        { name: "Entity", view: (row) => entity(row.entity_id, row.domain) },
        { name: "Type", view: (row) => row.node_type },
        { name: "Node version", view: (row) => row.node_version },
        { name: "Deadline", view: (row) => deadline(nextDeadline(row)) },
        { name: "Heartbeat", view: (row) => ago(row.last_heartbeat_at) },
        { name: "Updated", view: (row) => ago(row.updated_at) },
        { name: "Version", number: true, view: (row) => number(row.version) },
      ],
      data.items,
      { key: (row) => row.entity_id, none: "No entity matches." },
    ),
    pager("entities", { ...params, ...own }, data),
  ];
}

// The deadline that counts in the entity's state.
export function nextDeadline(row) {
  if (row.current_state === "accepted" || row.current_state === "awaiting_ack") return row.ack_deadline;
  return row.current_state === "active" ? row.liveness_deadline : null;
}

// Save the whole list, however long it is: the browser keeps what comes on its disk.
async function download(view, query) {
  view.say("Reading all rows…");
  try {
    const headers = { Accept: NDJSON, ...authorization() };
    const answer = await fetch(address(CALL, query), { headers });
    if (!answer.ok) throw new Error(`the service answered with ${answer.status}`);
    const url = URL.createObjectURL(await answer.blob());
    Object.assign(document.createElement("a"), { href: url, download: "entities.ndjson" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    view.say(error.message);
  }
}
