// The domain and the service at a glance.

import { get } from "./api.js";
import { diagram } from "./diagram.js";
import { h } from "./dom.js";
import { ago, asCurl, card, facts, link, otherDomain, sparkline } from "./parts.js";
import { number, plural, secondsTo, setClock, span } from "./text.js";

const MINUTES = 15; // that the service tells

export const title = ({ domain }) => (domain === "registration" ? "Overview" : `Overview of ${domain}`);

export async function load({ domain }, signal) {
  const began = Date.now();
  const { data } = await get("v1/overview", { domain }, { signal });
  setClock(data.at, began, Date.now());
  return data;
}

export function view(view, data) {
  const domain = otherDomain(data.domain);
  const { operations } = data;
  return [
    h(
      "div",
      { class: "tiles" },
      tile("Entities", number(data.total), "total", link("entities", { domain }), "in this domain"),
      overdue("Overdue to acknowledge", "ack", data.overdue.ack, domain),
      overdue("Overdue to be alive", "liveness", data.overdue.liveness, domain),
      operations ? deadLetters(operations) : null,
    ),
    card("States", diagram(data.counts, domain)),
    operations ? h("div", { class: "columns" }, rates(operations), service(operations), messages(operations)) : null,
    h("p", { class: "tools" }, asCurl(view, "GET", "v1/overview", { query: { domain } })),
  ];
}

function tile(name, value, id, href, detail, colour = "") {
  return h(
    "div",
    { class: "card tile", role: "group", "aria-label": name },
    h("h2", {}, h("a", { href }, name)),
    h("p", { class: `big ${colour}`, "data-number": id }, value),
    h("p", { class: "muted" }, detail),
  );
}

function overdue(name, kind, { count, is_more: isMore, oldest_deadline: oldest, next_deadline: next }, domain) {
  const detail = [
    oldest ? ["oldest for ", span(Math.max(-secondsTo(oldest), 0))] : "none overdue",
    next ? [" · next ", secondsTo(next) > 0 ? ago(next) : "now"] : null,
  ];
  return tile(name, `${number(count)}${isMore ? "+" : ""}`, `overdue-${kind}`, link("overdue", { domain, kind }), detail, count ? "late" : "");
}

function deadLetters({ dead_letters: { count }, outbox }) {
  const waiting = `${plural(outbox.messages, "message")} in the outbox`;
  return tile("Dead letters", number(count), "dead-letters", link("messages"), waiting, count ? "late" : "");
}

// The events of the last minutes; minutes before the service began are not told.
function rates({ minutes }) {
  const taken = minutes.map(events);
  const missing = Math.max(MINUTES - minutes.length, 0);
  const values = [...Array(missing).fill(0), ...taken];
  const whole = taken.slice(0, -1); // the last minute is not over
  const last = whole.at(-1) ?? 0;
  const all = taken.reduce((sum, each) => sum + each, 0);
  const refused = minutes.reduce((sum, { stale, early, conflict, invalid, forbidden }) => sum + stale + early + conflict + invalid + forbidden, 0);
  return card(
    "Events over HTTP, 15 minutes",
    h("p", {}, h("span", { class: "big", "data-number": "events" }, number(all)), h("span", { class: "muted" }, ` events, ${(last / 60).toFixed(1)} a second in the last minute`)),
    sparkline(values, `Events a minute over 15 minutes, ${number(Math.max(...values))} at most`),
    facts([
      ["Applied", number(minutes.reduce((sum, each) => sum + each.applied, 0))],
      ["Ignored or repeated", number(minutes.reduce((sum, each) => sum + each.ignored + each.duplicate, 0))],
      ["Not taken in", h("span", { class: refused ? "warn" : "" }, number(refused))],
    ]),
  );
}

function events({ began_at: _, ...outcomes }) {
  return Object.values(outcomes).reduce((sum, each) => sum + each, 0);
}

function service({ sweep, breakers, version, revision }) {
  const open = breakers.filter((each) => each.is_open).map((each) => each.name);
  return card(
    "Service",
    facts([
      ["Sweep", h("span", { class: sweep.is_on ? "good" : "warn" }, sweep.is_on ? "on" : "off")],
      ["", h("span", { class: "muted" }, `${sweep.meaning[0].toUpperCase()}${sweep.meaning.slice(1).replaceAll("`", "")}.`)],
      ["Breakers", open.length ? h("span", { class: "bad" }, `open: ${open.join(", ")}`) : `${plural(breakers.length, "breaker")}, all closed`],
      ["Version", `${version}, schema ${revision}`],
    ]),
  );
}

function messages({ outbox, watermarks }) {
  return card(
    "Messages",
    facts([
      ["Outbox", h("span", { "data-number": "outbox" }, number(outbox.messages))],
      outbox.oldest_at && ["Oldest", ago(outbox.oldest_at)],
      ...outbox.destinations.filter((each) => each.messages).map((each) => [`to ${each.destination}`, number(each.messages)]),
      ["Partitions", number(watermarks.partitions)],
      watermarks.as_of && ["Applied up to", ago(watermarks.as_of)],
      watermarks.unknown ? ["Unknown lag", plural(watermarks.unknown, "partition")] : null,
    ]),
  );
}
