// One entity: its row, its deadlines, its history, its state at a moment, and the acts of an operator.

import { call, get, segment } from "./api.js";
import { h } from "./dom.js";
import { act, ago, asCurl, at, button, card, choice, deadline, facts, field, given, link, otherDomain, position, raw, refusal, state } from "./parts.js";
import { number, words } from "./text.js";

const HISTORY = 50; // changes of a page

export const under = "entities";
export const title = () => "Entity";

const path = (view) => `v1/entities/${segment(view.params.id ?? "")}`;

export async function load(view, signal) {
  const { domain, params } = view;
  const options = { signal };
  const [row, history, then] = await Promise.all([
    settled(get(path(view), { domain }, options)),
    settled(get(`${path(view)}/history`, { domain, order: "desc", limit: HISTORY, cursor: params.cursor }, options)),
    params.at ? settled(get(`${path(view)}/state`, { domain, as_of: params.at, clock: params.clock }, options)) : null,
  ]);
  return { row, history, then };
}

// The answer, or the refusal as a value: a part may be missing while the others are there.
function settled(asked) {
  return asked.catch((error) => {
    if (error.name === "AbortError" || error.away || error.status === 401) throw error;
    return { error };
  });
}

export function view(view, { row, history, then }) {
  const { params, domain } = view;
  return [
    h("p", { class: "lead" }, h("code", { class: "id" }, params.id), domain === "registration" ? null : ["in the domain ", h("code", {}, domain)]),
    row.error ? missing(row.error) : registration(view, row),
    moment(view, then),
    timeline(view, history),
    row.error ? null : card("Raw JSON", raw(row.text)),
    row.error ? null : acts(view, row),
    view.memory.result ?? null,
  ];
}

function missing(error) {
  if (error.status !== 410) return refusal(error);
  const { forgotten_at: since, permanent } = error.problem;
  return card("Forgotten", facts([["Since", at(since)], ["For good", permanent ? "yes: nothing begins it anew" : "no"]]), refusal(error));
}

function registration(view, { data, headers }) {
  return h(
    "div",
    { class: "columns" },
    card(
      "Registration",
      facts([
        ["State", state(data.current_state)],
        ["Node type", data.node_type],
        ["Node version", data.node_version],
        ["Registered", at(data.registered_at)],
        ["Updated", ago(data.updated_at)],
        ["Version", [number(data.version), h("span", { class: "muted" }, ` ETag ${headers.get("ETag") ?? ""}`)]],
      ]),
      asCurl(view, "GET", path(view), { query: { domain: otherDomain(view.domain) } }),
    ),
    card(
      "Deadlines",
      facts([
        ["Acknowledge", deadline(data.ack_deadline)],
        ["Heartbeat", deadline(data.liveness_deadline)],
        ["Last heartbeat", ago(data.last_heartbeat_at)],
        data.ack_timeout_emitted_at && ["Ack time-out told", ago(data.ack_timeout_emitted_at)],
        data.liveness_timeout_emitted_at && ["Expiry told", ago(data.liveness_timeout_emitted_at)],
      ]),
    ),
    card(
      "Position",
      facts([
        [
          "Stands at",
          position(
            data.last_applied_sequence === null
              ? { partition: data.last_applied_partition, offset: data.last_applied_offset }
              : { sequence: data.last_applied_sequence },
          ),
        ],
        ["Last event", h("code", { class: "id" }, data.last_applied_event_id)],
        ["Correlation id", data.correlation_id ? h("code", { class: "id" }, data.correlation_id) : "–"],
      ]),
    ),
    card("Capabilities", capabilities(data.capabilities)),
  );
}

function capabilities(all) {
  const names = Object.entries(all);
  if (names.length === 0) return h("p", { class: "nothing" }, "None.");
  return h(
    "ul",
    { class: "tags" },
    ...names.map(([name, value]) =>
      h("li", { key: name }, value === true ? name : [name, ": ", h("code", {}, JSON.stringify(value))]),
    ),
  );
}

// What the call for the state answered at a time.
function moment(view, then) {
  const { params, domain } = view;
  const kept = { id: params.id, domain: otherDomain(domain) };
  return card(
    "State at a moment",
    h(
      "form",
      {
        key: `at ${location.search}`,
        class: "fields",
        onsubmit: (event) => {
          event.preventDefault();
          view.go(link("entity", { ...kept, ...given(event.target) }));
        },
      },
      field("Moment", "at", params.at, { placeholder: "2026-01-01T12:00:00Z", spellcheck: "false" }),
      choice("By the time", "clock", params.clock, [
        ["", "when it was stored"],
        ["occurred", "when it happened"],
      ]),
      button("Show", null, { type: "submit" }),
      params.at ? h("a", { href: link("entity", kept), class: "quiet" }, "Now") : null,
    ),
    then ? (then.error ? refusal(then.error) : facts([["At that moment", state(then.data.current_state)]])) : null,
  );
}

function timeline(view, history) {
  const { params, domain } = view;
  if (history.error) return history.error.status === 404 ? null : card("History", refusal(history.error));
  const { items, next_cursor: next, complete } = history.data;
  const kept = { id: params.id, domain: otherDomain(domain), at: params.at, clock: params.clock };
  return card(
    "History",
    items.length ? null : h("p", { class: "nothing" }, "No change is logged."),
    h(
      "ol",
      { class: "timeline" },
      ...items.map((change) =>
        h(
          "li",
          { key: String(change.id) },
          h("span", { class: "when" }, at(change.occurred_at)),
          h(
            "span",
            { class: "what" },
            change.before && change.before !== change.current_state ? [state(change.before), " → "] : null,
            state(change.current_state),
          ),
          h(
            "span",
            { class: "why" },
            h("code", {}, change.type),
            change.outcome === "applied" ? null : [" ", words(change.outcome)],
            change.reason ? h("span", { class: "muted" }, ` ${change.reason}`) : null,
          ),
          h(
            "span",
            { class: "where" },
            "version ",
            number(change.version),
            " · ",
            position(change.stands_at),
            " ",
            h("a", { href: link("entity", { ...kept, at: change.changed_at, clock: null }), title: "the state after this change" }, "then"),
          ),
        ),
      ),
    ),
    next ? h("p", { class: "pager" }, h("a", { href: link("entity", { ...kept, cursor: next }) }, "Older changes")) : null,
    complete || next ? null : h("p", { class: "muted" }, "The log does not go back to the entity's beginning."),
  );
}

// --- Acts -----------------------------------------------------------------------------------------------------------

const ACTS = {
  deregister: {
    said: "Deregister…",
    title: "Deregister this node?",
    means: "Its registration ends, as its own node.deregistered would end it. The node may register again.",
    sure: "Deregister it now",
    fields: [],
  },
  forget: {
    said: "Forget…",
    title: "Forget this node?",
    means: "Its row becomes a tombstone that says nothing of the node: reads answer 410, lists and counts leave it out.",
    sure: "Forget it now",
    fields: [
      ["erase", "Also empty its changes, and remove its dead letters and waiting messages"],
      ["permanent", "For good: no event begins it anew"],
    ],
  },
};

function acts(view, row) {
  const buttons = Object.keys(ACTS).map((name) => act(ACTS[name].said, () => first(view, row, name), { class: "danger" }));
  return buttons.some(Boolean) ? h("p", { class: "tools" }, ...buttons) : null;
}

// The first question: with which reason.
function first(view, row, name) {
  const { title: asks, means, fields } = ACTS[name];
  view.open(() => [
    h("h2", {}, asks),
    h("p", {}, h("code", { class: "id" }, view.params.id)),
    h("p", {}, means),
    h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          const filled = new FormData(event.target);
          const body = {};
          const reason = filled.get("reason").trim();
          if (reason) body.reason = reason;
          for (const [field_] of fields) if (filled.has(field_)) body[field_] = true;
          second(view, row, name, body);
        },
      },
      field("Reason", "reason", "", { maxlength: "1000" }),
      ...fields.map(([field_, said]) => h("label", { key: field_, class: "tick" }, h("input", { type: "checkbox", name: field_ }), said)),
      h("p", { class: "tools" }, h("button", { type: "submit", class: "danger" }, "Continue"), button("Cancel", () => view.close())),
    ),
  ]);
}

// The second question: really. The row must still be the one that was shown.
function second(view, row, name, body) {
  const { title: asks, sure } = ACTS[name];
  const etag = row.headers.get("ETag");
  const query = { domain: otherDomain(view.domain) };
  const headers = etag ? { "If-Match": etag } : {};
  const target = `${path(view)}/${name}`;
  view.open(() => [
    h("h2", {}, asks),
    h("p", {}, "Really? ", h("code", { class: "id" }, view.params.id)),
    facts([["State", state(row.data.current_state)], ...Object.entries(body).map(([field_, value]) => [field_, String(value)])]),
    h(
      "p",
      { class: "tools" },
      button(
        sure,
        async () => {
          try {
            const { data } = await call("POST", target, { query, body, headers });
            const said = data.outcome === "ignored" ? `Nothing to end: ${data.reason}.` : name === "forget" ? "Forgotten." : "Deregistered.";
            view.memory.result = h("p", { class: "done", role: "status" }, said);
          } catch (error) {
            view.memory.result = refusal(error);
          }
          view.close();
          view.refresh();
        },
        { class: "danger" },
      ),
      button("Cancel", () => view.close(), { autofocus: true }),
      asCurl(view, "POST", target, { query, body, headers }),
    ),
  ]);
}
