// What several pages show in the same way.

import { curl, readOnly } from "./api.js";
import { h } from "./dom.js";
import { pretty } from "./json.js";
import { local, number, plural, secondsTo, span, words } from "./text.js";

export const STATES = [
  "pending_registration",
  "accepted",
  "awaiting_ack",
  "ack_received",
  "active",
  "rejected",
  "ack_timed_out",
  "liveness_expired",
];

// The address of a page; parameters that are "" or null are left out.
export function link(page, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const each of [value].flat()) {
      if (each !== null && each !== undefined && each !== "") query.append(name, each);
    }
  }
  const text = query.toString();
  return text ? `${page}?${text}` : page;
}

export function state(name) {
  return h("span", { class: `state ${name}` }, words(name));
}

// A time as its distance to now, with the time itself on hover. It ticks.
export function ago(time) {
  if (!time) return h("span", { class: "none" }, "–");
  const seconds = secondsTo(time);
  const said = seconds > 0 ? `in ${span(seconds)}` : `${span(seconds)} ago`;
  return h("time", { datetime: time, title: `${local(time)} (${time})` }, said);
}

// A deadline: the time left, or how long it has passed.
export function deadline(time) {
  if (!time) return h("span", { class: "none" }, "–");
  const seconds = secondsTo(time);
  const said = seconds > 0 ? `in ${span(seconds)}` : `${span(seconds)} overdue`;
  const colour = seconds > 0 ? "due" : "due late";
  return h("time", { datetime: time, class: colour, title: `${local(time)} (${time})` }, said);
}

export function at(time) {
  return time ? h("time", { datetime: time, title: time }, local(time)) : h("span", { class: "none" }, "–");
}

export function entity(id, domain) {
  return h("a", { class: "id", href: link("entity", { id, domain: otherDomain(domain) }) }, id);
}

export const DEFAULT_DOMAIN = "registration";

export function otherDomain(domain) {
  return domain === DEFAULT_DOMAIN ? null : domain;
}

export function position(stands) {
  if (!stands) return h("span", { class: "none" }, "–");
  if (stands.sequence !== undefined) return h("span", { class: "number" }, "sequence ", number(stands.sequence));
  return h("span", { class: "number" }, stands.partition, " @ ", number(stands.offset));
}

// A table: columns are {name, view, number}, or with a name that only screen readers say, {hidden, view}; a row has the key that `key` gives. It scrolls on a narrow screen.
export function table(label, columns, rows, { key, none = "Nothing here.", more = () => ({}) } = {}) {
  if (rows.length === 0) return h("p", { class: "nothing" }, none);
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ...columns.map((each) => h("th", { scope: "col", class: each.number && "right" }, each.hidden ? h("span", { class: "hidden" }, each.hidden) : each.name)))),
      h(
        "tbody",
        {},
        ...rows.map((row) =>
          h(
            "tr",
            { key: String(key(row)), ...more(row) },
            ...columns.map((each) => h("td", { class: each.number && "right number" }, each.view(row))),
          ),
        ),
      ),
    ),
  );
}

// Names and values, one below the other.
export function facts(list) {
  return h(
    "dl",
    { class: "facts" },
    ...list.filter(Boolean).map(([name, value], index) => h("div", { key: `${index} ${name}` }, h("dt", {}, name), h("dd", {}, value))),
  );
}

export function card(title, ...content) {
  return h("div", { class: "card", role: "group", "aria-label": title }, h("h2", {}, title), ...content);
}

// A text that a button copies.
export function copy(name, text, view) {
  return h(
    "button",
    {
      type: "button",
      class: "quiet",
      title: text,
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(text); // there only over https and on this machine
          view.say("Copied.");
        } catch {
          view.say(text);
        }
      },
    },
    name,
  );
}

// The command that asks for the same, to be copied, and shown where the page unfolds it.
export function asCurl(view, method, path, options, name = "Copy curl") {
  return copy(name, curl(method, path, options), view);
}

export function raw(text, label = "JSON") {
  return h("pre", { class: "raw", tabindex: "0", role: "region", "aria-label": label }, pretty(text));
}

// What went wrong, in the service's own words.
export function refusal(error) {
  if (!error) return null;
  return h(
    "div",
    { class: "refusal", role: "alert" },
    h("strong", {}, error.status ? `${error.status} ` : null, error.problem?.title ?? null),
    " ",
    error.message,
    error.faults?.length
      ? h("ul", {}, ...error.faults.map((fault) => h("li", {}, h("code", {}, fault.pointer), " ", fault.detail)))
      : null,
  );
}

// A refusal in one cell of a table.
export function inRow(result) {
  if (!result) return null;
  if (result.busy) return h("span", { class: "result", role: "status" }, "…");
  if (!result.error) return h("span", { class: "result good", role: "status" }, result.text);
  const { error } = result;
  const faults = error.faults.map((fault) => `${fault.pointer}: ${fault.detail}`);
  const said = [`${error.status || ""} ${error.message}`.trim(), ...faults].join("; ");
  return h("span", { class: "result bad", role: "status" }, said);
}

// Links to the first and the next page. The way back is the browser's own.
export function pager(page, params, data) {
  if (!params.cursor && !data.next_cursor) return null;
  const first = { ...params, cursor: null };
  return h(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    params.cursor ? h("a", { href: link(page, first) }, "First page") : null,
    data.next_cursor ? h("a", { href: link(page, { ...params, cursor: data.next_cursor }) }, "Next page") : null,
    h("span", { class: "muted" }, `${plural(data.items.length, "row")} on this page`),
  );
}

export function field(label, name, value, props = {}) {
  return h("label", { class: "field" }, h("span", {}, label), h("input", { name, value: value ?? "", autocomplete: "off", ...props }));
}

export function choice(label, name, value, options, props = {}) {
  return h(
    "label",
    { class: "field" },
    h("span", {}, label),
    h("select", { name, value: value ?? "", ...props }, ...options.map(([key, said]) => h("option", { key, value: key }, said))),
  );
}

// The states as boxes to tick.
export function stateChoice(chosen) {
  return h(
    "fieldset",
    { class: "chips" },
    h("legend", {}, "State"),
    ...STATES.map((name) =>
      h(
        "label",
        { key: name, class: `chip ${name}` },
        h("input", { type: "checkbox", name: "state", value: name, checked: chosen.includes(name) }),
        words(name),
      ),
    ),
  );
}

// The fields of a form that are not empty, as parameters.
export function given(form) {
  const params = {};
  for (const [name, value] of new FormData(form)) {
    const text = value.trim();
    if (text) params[name] = name in params ? [params[name], text].flat() : text;
  }
  return params;
}

// A form that writes its fields into the address.
export function filters(view, page, kept, ...content) {
  return h(
    "form",
    {
      key: `filters ${location.search}`,
      class: "filters",
      role: "search",
      "aria-label": "Filters",
      onsubmit: (event) => {
        event.preventDefault();
        view.go(link(page, { ...given(event.target), ...kept }));
      },
    },
    ...content,
    h("button", { type: "submit" }, "Apply"),
    location.search ? h("a", { href: link(page, kept), class: "quiet" }, "Clear") : null,
  );
}

export function button(said, onclick, props = {}) {
  return h("button", { type: "button", onclick, ...props }, said);
}

// A button for what changes something: it is not there where the console only reads.
export function act(said, onclick, props = {}) {
  return readOnly ? null : button(said, onclick, props);
}

// A line through the values of the last minutes.
export function sparkline(values, label) {
  const width = 240;
  const height = 36;
  const top = Math.max(...values, 1e-9);
  const step = values.length > 1 ? width / (values.length - 1) : width;
  const points = values.map((value, index) => `${(index * step).toFixed(1)},${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`);
  return h(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" },
    h("polyline", { class: "area", points: `0,${height} ${points.join(" ")} ${width},${height}` }),
    h("polyline", { class: "line", points: points.join(" ") }),
  );
}
