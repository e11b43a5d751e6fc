// Messages: those that wait to go out, those that failed, the entities that these hold, and how far Kafka is read.

import { call, get, hasCall, readOnly, segment } from "./api.js";
import { h } from "./dom.js";
import { act, ago, asCurl, button, card, choice, entity, facts, field, filters, inRow, link, pager, refusal, table } from "./parts.js";
import { number, plural, span } from "./text.js";

const LETTERS = "v1/dead-letters";
const HELD = `${LETTERS}/entities`;
const FILTERS = ["source", "topic", "error", "entity_id", "since", "order"];

export const title = () => "Messages";

export async function load(view, signal) {
  const { params } = view;
  const hasHeld = await hasCall("/v1/dead-letters/entities"); // and then the filters
  const query = { limit: params.limit, cursor: params.cursor };
  if (hasHeld) for (const name of FILTERS) query[name] = params[name];
  const [overview, letters, held, watermarks] = await Promise.all([
    get("v1/overview", {}, { signal }),
    get(LETTERS, query, { signal }),
    hasHeld ? get(HELD, { limit: 100 }, { signal }) : null,
    get("v1/watermarks", {}, { signal }),
  ]);
  return { operations: overview.data.operations, letters: letters.data, held: held?.data ?? null, watermarks: watermarks.data.items, hasHeld, query };
}

export function view(view, data) {
  return [
    h("div", { class: "columns" }, outbox(data.operations.outbox), partitions(view, data.watermarks)),
    data.held ? held(view, data.held) : null,
    letters(view, data),
  ];
}

// --- Going out ------------------------------------------------------------------------------------------------------

function outbox({ destinations }) {
  return card(
    "Outbox",
    table(
      "Outbox",
      [
        { name: "Destination", view: (row) => row.destination },
        { name: "Waiting", number: true, view: (row) => number(row.messages) },
        { name: "Oldest", view: (row) => ago(row.oldest_at) },
      ],
      destinations,
      { key: (row) => row.destination, none: "Nothing waits to go out." },
    ),
  );
}

// --- Coming in ------------------------------------------------------------------------------------------------------

function partitions(view, watermarks) {
  return card(
    "Partitions",
    table(
      "Partitions",
      [
        { name: "Topic", view: (row) => row.topic },
        { name: "Partition", number: true, view: (row) => number(row.partition) },
        { name: "Offset", number: true, view: (row) => number(row.offset) },
        { name: "Lag", number: true, view: (row) => lag(row) },
        { name: "Consumer", view: (row) => row.consumer },
        { name: "Written", view: (row) => ago(row.updated_at) },
        readOnly ? null : { hidden: "What to do", view: (row) => dropping(view, row) },
      ].filter(Boolean),
      watermarks,
      { key: (row) => `${row.topic}-${row.partition}`, none: "No partition is read." },
    ),
  );
}

// How far behind the partition is: everything that was in it at `as_of` is applied.
function lag({ as_of: known, updated_at: written }) {
  if (!known) return "unknown";
  const seconds = Math.max((Date.parse(written) - Date.parse(known)) / 1000, 0);
  return seconds < 1 ? "none" : span(seconds);
}

function dropping(view, { topic, partition }) {
  const id = `watermark ${topic}-${partition}`;
  const path = `v1/watermarks/${segment(topic)}/${partition}`;
  return [
    sure(view, id, "Drop", () => call("DELETE", path).then(() => "dropped")),
    inRow(view.memory[id]),
  ];
}

// --- Failed ---------------------------------------------------------------------------------------------------------

function letters(view, data) {
  const { params } = view;
  const results = (view.memory.results ??= new Map());
  const rows = withDone(data.letters.items, results, params.order === "desc");
  const chosen = (view.memory.chosen ??= new Set());
  const open = rows.filter((row) => !results.get(row.id)?.isGone);
  return card(
    "Dead letters",
    data.hasHeld
      ? filters(
          view,
          "messages",
          {},
          h(
            "div",
            { class: "fields" },
            choice("Source", "source", params.source, [["", "any"], ["consumer", "came in"], ["relay", "to go out"]]),
            field("Topic", "topic", params.topic),
            field("Error contains", "error", params.error),
            field("Entity", "entity_id", params.entity_id, { spellcheck: "false" }),
            field("Since", "since", params.since, { placeholder: "2026-01-01T12:00:00Z" }),
            choice("Order", "order", params.order, [["", "oldest first"], ["desc", "newest first"]]),
          ),
        )
      : null,
    h(
      "p",
      { class: "tools" },
      h("span", { class: "muted" }, plural(open.length, "letter"), data.letters.next_cursor ? " on this page" : ""),
      readOnly || open.length === 0
        ? null
        : [
            act(`Retry ${chosen.size || "all shown"}`, () => each(view, picked(open, chosen), "retry")),
            sure(view, "many", `Delete ${chosen.size || "all shown"}`, () => each(view, picked(open, chosen), "delete")),
          ],
      h("span", { class: "grow" }),
      asCurl(view, "GET", LETTERS, { query: data.query }),
    ),
    table(
      "Dead letters",
      [
        readOnly ? null : { hidden: "Choose", view: (row) => pick(view, chosen, row) },
        { name: "Letter", number: true, view: (row) => number(row.id) },
        { name: "Failed", view: (row) => ago(row.created_at) },
        { name: "From", view: (row) => (row.partition === null ? [row.topic, " (out)"] : `${row.topic}-${row.partition} @ ${number(row.offset)}`) },
        { name: "Error", view: (row) => [h("span", { class: "wrap" }, row.error), message(row)] },
        readOnly ? null : { name: "What to do", view: (row) => doing(view, row, results.get(row.id)) },
      ].filter(Boolean),
      rows,
      { key: (row) => row.id, none: "No message has failed." },
    ),
    pager("messages", params, data.letters),
  );
}

// The letters of the page, and those that were here and are done with: their results stay in their rows.
function withDone(items, results, isDescending) {
  const there = new Set(items.map((row) => row.id));
  const done = [...results.values()].filter((result) => result.isGone && !there.has(result.row.id)).map((result) => result.row);
  const sign = isDescending ? -1 : 1;
  return [...items, ...done].sort((one, other) => sign * (Number(one.id) - Number(other.id)));
}

function picked(rows, chosen) {
  return chosen.size ? rows.filter((row) => chosen.has(row.id)) : rows;
}

function pick(view, chosen, row) {
  return h("input", {
    type: "checkbox",
    "aria-label": `Choose letter ${row.id}`,
    checked: chosen.has(row.id),
    onchange: (event) => {
      if (event.target.checked) chosen.add(row.id);
      else chosen.delete(row.id);
      view.render();
    },
  });
}

function message(row) {
  return h(
    "details",
    {},
    h("summary", {}, "Message"),
    facts([
      ["Key", h("code", { class: "wrap" }, row.key ?? row.key_base64 ?? "–")],
      ...row.headers.map((header) => [header.name, h("code", { class: "wrap" }, header.value ?? header.value_base64 ?? "–")]),
    ]),
    h("pre", { class: "raw" }, row.value ?? (row.value_base64 ? `base64: ${row.value_base64}` : "no value")),
  );
}

function doing(view, row, result) {
  return [
    result?.isGone ? null : act("Retry", () => one(view, row, "retry")),
    result?.isGone ? null : sure(view, `letter ${row.id}`, "Delete", () => one(view, row, "delete")),
    inRow(result),
  ];
}

// One after the other, so that the letters of an entity are retried in their order.
async function each(view, rows, name) {
  for (const row of rows) await one(view, row, name);
  view.memory.chosen.clear();
  view.refresh();
}

async function one(view, row, name) {
  const { results } = view.memory;
  results.set(row.id, { busy: true, row });
  view.render();
  try {
    const path = `${LETTERS}/${row.id}`;
    const answer = name === "retry" ? await call("POST", `${path}/retry`) : await call("DELETE", path);
    const said = name === "delete" ? "deleted" : answer.status === 202 ? "waits in the outbox again" : outcome(answer.data);
    results.set(row.id, { text: said, isGone: true, row });
  } catch (error) {
    results.set(row.id, { error, row });
  }
  view.render();
}

function outcome({ outcome: said, reason }) {
  return reason ? `${said}: ${reason}` : said;
}

// --- Held entities --------------------------------------------------------------------------------------------------

function held(view, page) {
  return card(
    "Held entities",
    h("p", { class: "muted" }, "Their later messages wait behind a dead letter. They do not expire, and do not count as overdue."),
    table(
      "Held entities",
      [
        { name: "Entity", view: (row) => entity(row.entity_id) },
        { name: "Held", view: (row) => ago(row.held_at) },
        { name: "Letter", number: true, view: (row) => number(row.letter_id) },
        { name: "Waiting", number: true, view: (row) => number(row.messages) },
        { name: "Error", view: (row) => h("span", { class: "wrap" }, row.error) },
        readOnly ? null : { name: "What to do", view: (row) => heldActs(view, row) },
      ].filter(Boolean),
      page.items,
      { key: (row) => row.entity_id, none: "No entity is held." },
    ),
    page.next_cursor ? h("p", { class: "muted" }, "There are more; the first 100 are shown.") : null,
  );
}

function heldActs(view, row) {
  const id = `held ${row.entity_id}`;
  const queue = (name) => async () => {
    const { data } = await call("POST", `${HELD}/${row.entity_id}/${name}`);
    return data.messages ? `${plural(data.messages, "message")} still waits` : "held no longer";
  };
  return [
    act("Retry", () => attempt(view, id, queue("retry"))),
    sure(view, id, "Skip", queue("skip")),
    inRow(view.memory[id]),
  ];
}

// --- Acts -----------------------------------------------------------------------------------------------------------

// Do it, and show in its row what became of it.
async function attempt(view, id, work) {
  view.memory[id] = { busy: true };
  view.render();
  try {
    view.memory[id] = { text: await work() };
  } catch (error) {
    view.memory[id] = { error };
  }
  view.refresh();
}

// A button for what cannot be undone: it asks once more in its place.
function sure(view, id, said, work) {
  const asking = `sure ${id}`;
  if (!view.memory[asking]) {
    return act(
      said,
      () => {
        view.memory[asking] = true;
        view.render();
      },
      { class: "danger" },
    );
  }
  const close = () => {
    view.memory[asking] = false;
    view.render();
  };
  return h(
    "span",
    { class: "sure", role: "group", "aria-label": `${said}: are you sure?` },
    button(
      `${said}: really`,
      () => {
        close();
        if (id.startsWith("watermark") || id.startsWith("held")) attempt(view, id, work);
        else work();
      },
      { class: "danger" },
    ),
    button("No", close, { class: "quiet" }),
  );
}
