// Keys that lead through the console. They do nothing while somebody types, or with a modifier.

import { h } from "./dom.js";
import { button, link, otherDomain } from "./parts.js";

const PATIENCE = 1500; // milliseconds between the two keys of a pair

const LETTERS = { overview: "o", entities: "n", overdue: "d", workflows: "w", changes: "c", messages: "m", system: "s" };

// The keys by what is typed: {"g o": [what it does, how]}.
export function bindings(view, pages) {
  const found = {
    "/": ["go to a node, an event or a workflow", () => document.querySelector(".goto input").focus()],
    "?": ["show the keys", () => view.open(() => help(view))],
    r: ["refresh", () => view.refresh()],
    f: ["to the filters", () => document.querySelector(".filters input, .filters select")?.focus()],
    n: ["to the next page of a list", () => document.querySelector(".pager a:last-of-type")?.click()],
  };
  for (const page of pages) {
    found[`g ${LETTERS[page]}`] = [`go to ${page === "entities" ? "the entities (nodes)" : page}`, () =>
      view.go(link(page, { domain: otherDomain(view.domain) }))];
  }
  view.keys = found;
  return found;
}

export function listen(found) {
  let before = "";
  let timer = null;
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest("input, select, textarea, dialog")) {
      if (event.key === "Escape" && event.target.closest(".goto")) event.target.blur();
      return;
    }
    const typed = before ? `${before} ${event.key}` : event.key;
    clearTimeout(timer);
    before = "";
    if (found[typed]) {
      event.preventDefault();
      found[typed][1]();
    } else if (typed === "g") {
      before = "g";
      timer = setTimeout(() => (before = ""), PATIENCE);
    }
  });
}

export function help(view) {
  return h(
    "div",
    { class: "help" },
    h("h2", {}, "Keys"),
    h(
      "dl",
      { class: "facts" },
      ...Object.entries(view.keys).map(([keys, [said]]) =>
        h("div", { key: keys }, h("dt", {}, ...keys.split(" ").flatMap((each) => [h("kbd", {}, each), " "])), h("dd", {}, said)),
      ),
    ),
    h("p", { class: "muted" }, "Every page shows what the service's own calls answer: whatever you see, curl shows too."),
    button("Close", () => view.close()),
  );
}
