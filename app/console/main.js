// The console: it reads the page and its parameters from the address, asks the service for what the page shows, asks
// again at the interval that its reader sets, and draws.

import { findSession, get, isSignedIn, needsKey, readOnly, session, signOut } from "./api.js";
import * as changes from "./changes.js";
import { h, patch } from "./dom.js";
import * as entities from "./entities.js";
import * as entity from "./entity.js";
import { goTo } from "./goto.js";
import { bindings, help, listen } from "./keys.js";
import * as messages from "./messages.js";
import * as overdue from "./overdue.js";
import * as overview from "./overview.js";
import { DEFAULT_DOMAIN, button, link, otherDomain, refusal } from "./parts.js";
import { signInForm } from "./signin.js";
import * as system from "./system.js";
import { local } from "./text.js";
import * as workflow from "./workflow.js";
import * as workflows from "./workflows.js";

const PAGES = { overview, entities, entity, overdue, workflows, workflow, changes, messages, system };
const NAVIGATION = ["overview", "entities", "overdue", "workflows", "changes", "messages", "system"];
const OF_A_DOMAIN = new Set(["overview", "entities", "overdue", "changes", "entity"]);
const INTERVALS = [1, 2, 5, 10, 30, 60]; // seconds
const USUAL = 5; // seconds
const REMEMBERED = 20; // answers of pages, so that the way back shows at once what was there
const STORED = "pqs-console-interval";
const RETURN = "pqs-console-return"; // the address from which somebody went to the issuer

const state = {
  page: null, // the page's name
  params: {},
  search: "", // the address that `data` belongs to
  data: null,
  error: null, // of the last time that the page was asked for
  at: null, // when the data came
  away: false, // the service does not answer: what is shown is old
  memory: {}, // what the page keeps until it is left
  interval: storedInterval(), // seconds; 0 for never
  said: null,
  dialog: null,
  signedOut: false, // a call said 401
  refused: null, // why a sign-in was refused
  domains: [], // those that there are
};
const remembered = new Map();
let running = null; // the AbortController of the present request
let timer = null;

function storedInterval() {
  try {
    const stored = localStorage.getItem(STORED);
    return stored === null ? USUAL : Number(stored);
  } catch {
    return USUAL; // a browser that stores nothing for pages
  }
}

const view = {
  get params() {
    return state.params;
  },
  get domain() {
    return state.params.domain ?? DEFAULT_DOMAIN;
  },
  get memory() {
    return state.memory;
  },
  go,
  render,
  refresh: () => load(),
  say(text) {
    state.said = text;
    render();
    setTimeout(() => {
      if (state.said === text) state.said = null;
      render();
    }, 4000);
  },
  // Show a dialog until `close`: a function that gives its content.
  open(content) {
    state.dialog = content;
    render();
  },
  close() {
    state.dialog = null;
    render();
  },
};

// --- Where ----------------------------------------------------------------------------------------------------------

function read() {
  const page = location.pathname.split("/").pop();
  const params = {};
  for (const [name, value] of new URLSearchParams(location.search)) {
    params[name] = name in params ? [params[name], value].flat() : value;
  }
  state.page = page in PAGES ? page : "overview";
  state.params = params;
  state.search = `${page}${location.search}`;
  state.memory = {};
  state.error = null;
  state.dialog = null;
  const known = remembered.get(state.search);
  state.data = known?.data ?? null;
  state.at = known?.at ?? null;
}

// Go to another address of the console; the browser's way back leads here again.
export function go(href) {
  history.replaceState({ top: scrollY }, "");
  history.pushState(null, "", href);
  read();
  render();
  scrollTo(0, 0);
  document.querySelector("h1")?.focus({ preventScroll: true });
  load();
}

addEventListener("popstate", (event) => {
  read();
  render();
  scrollTo(0, event.state?.top ?? 0);
  load();
});

// Links within the console do not load it anew, unless they are opened elsewhere.
addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  if (!anchor || event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || anchor.target) return;
  const url = new URL(anchor.href);
  const isPage = url.origin === location.origin && url.pathname.replace(/[^/]*$/, "") === location.pathname.replace(/[^/]*$/, "");
  if (!isPage || url.hash || anchor.hasAttribute("download")) return;
  event.preventDefault();
  go(url.pathname + url.search);
});

// --- What -----------------------------------------------------------------------------------------------------------

// Ask for what the page shows. What is there stays until the answer has come, and when none comes.
async function load() {
  running?.abort();
  clearTimeout(timer);
  const own = (running = new AbortController());
  const asked = state.search;
  try {
    const data = await PAGES[state.page].load(view, own.signal);
    if (own.signal.aborted) return;
    Object.assign(state, { data, error: null, at: Date.now(), away: false, signedOut: false });
    remembered.delete(asked);
    remembered.set(asked, { data, at: state.at });
    if (remembered.size > REMEMBERED) remembered.delete(remembered.keys().next().value);
  } catch (error) {
    if (own.signal.aborted) return;
    if (!("away" in error)) console.error(error); // a fault of these scripts
    state.error = error;
    state.away = Boolean(error.away);
    if ((state.signedOut = error.status === 401)) state.data = null;
  }
  running = null;
  render();
  schedule();
}

// The domains that there are, for the choice of one.
async function findDomains() {
  try {
    const { data } = await get("v1/domains", { limit: 1000 });
    state.domains = data.items.map((each) => each.domain);
    render();
  } catch {
    // there is no choice then; an address may name a domain nevertheless
  }
}

// A hidden page asks for nothing.
function schedule() {
  clearTimeout(timer);
  if (state.interval > 0 && !document.hidden && !state.signedOut) timer = setTimeout(load, state.interval * 1000);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if (!running && state.interval > 0) load();
});

function setPace(seconds) {
  state.interval = seconds;
  try {
    localStorage.setItem(STORED, String(seconds));
  } catch {
    // it counts until the page is left
  }
  render();
  if (!running) schedule();
}

async function begin() {
  if (needsKey) await findSession().catch(() => {}); // the page's own calls say what is wrong
  const from = sessionStorage.getItem(RETURN);
  if (from && isSignedIn()) {
    sessionStorage.removeItem(RETURN);
    history.replaceState(null, "", from);
    read();
  }
  if (needsKey && !isSignedIn()) {
    state.signedOut = true;
    render();
    return;
  }
  await load();
  findDomains();
}

// --- How it looks ---------------------------------------------------------------------------------------------------

function render() {
  const page = PAGES[state.page];
  const title = page.title(view, state.data);
  document.title = `${title} · Projection Query Service`;
  const focused = document.activeElement;
  patch(document.body, [
    h("a", { class: "skip", href: "#content" }, "Skip to the content"),
    h("header", {}, ...header()),
    h("main", { id: "content", tabindex: "-1", class: state.away ? "away" : state.page }, ...content(page, title)),
    state.dialog ? h("dialog", { key: "dialog", "aria-label": "Dialog", oncancel: () => view.close() }, state.dialog()) : null,
    h("p", { class: "said", role: "status", "aria-live": "polite" }, state.said),
  ]);
  const dialog = document.querySelector("dialog");
  if (dialog && !dialog.open) {
    dialog.$opener = focused;
    dialog.showModal();
  }
  if (shown && !dialog) shown.$opener?.focus();
  shown = dialog;
}

let shown = null; // the dialog that is open

function header() {
  const domain = otherDomain(view.domain);
  return [
    h("a", { class: "brand", href: link("overview", { domain }) }, "Nodes", h("span", {}, "projection query service")),
    h(
      "nav",
      { class: "pages", "aria-label": "Pages of the console" },
      ...NAVIGATION.map((name) =>
        h(
          "a",
          {
            key: name,
            href: link(name, { domain: OF_A_DOMAIN.has(name) ? domain : null }),
            "aria-current": name === (PAGES[state.page].under ?? state.page) && "page",
          },
          name[0].toUpperCase() + name.slice(1),
        ),
      ),
    ),
    h(
      "form",
      {
        class: "goto",
        role: "search",
        "aria-label": "Go to",
        onsubmit: (event) => {
          event.preventDefault();
          const box = event.target.elements.goto;
          goTo(box.value.trim(), view).then(
            () => (box.value = ""),
            (error) => view.say(error.message),
          );
        },
      },
      h("input", {
        name: "goto",
        type: "search",
        "aria-label": "Go to a node, an event or a workflow",
        placeholder: "Go to id, event or workflow  ( / )",
        autocomplete: "off",
        spellcheck: "false",
      }),
    ),
    h(
      "div",
      { class: "pace" },
      OF_A_DOMAIN.has(state.page) ? domains() : null,
      h(
        "label",
        {},
        h("span", { class: "hidden" }, "Ask again every"),
        h(
          "select",
          { name: "interval", value: String(state.interval), onchange: (event) => setPace(Number(event.target.value)) },
          ...INTERVALS.map((seconds) => h("option", { key: seconds, value: String(seconds) }, `every ${seconds} s`)),
          h("option", { key: 0, value: "0" }, "by hand"),
        ),
      ),
      button("Refresh", () => load(), { class: "quiet" }),
      session.principal ? button("Sign out", leave, { class: "quiet", title: session.principal }) : null,
      button("?", () => view.open(() => help(view)), { class: "quiet", "aria-label": "Keys" }),
    ),
  ];
}

// Sign out, and show nothing of what was there.
async function leave() {
  try {
    await signOut();
  } catch (error) {
    view.say(error.message);
    return;
  }
  running?.abort();
  clearTimeout(timer);
  remembered.clear();
  Object.assign(state, { data: null, error: null, signedOut: true });
  render();
}

// The choice of a domain, where there are several.
function domains() {
  const names = [...new Set([DEFAULT_DOMAIN, view.domain, ...state.domains])].sort();
  if (names.length < 2) return null;
  return h(
    "label",
    {},
    h("span", { class: "hidden" }, "Domain"),
    h(
      "select",
      {
        name: "domain",
        value: view.domain,
        onchange: ({ target }) => go(link(state.page, { ...state.params, cursor: null, domain: otherDomain(target.value) })),
      },
      ...names.map((name) => h("option", { key: name, value: name }, name)),
    ),
  );
}

function content(page, title) {
  return [
    h(
      "div",
      { class: "title" },
      h("h1", { tabindex: "-1" }, title),
      readOnly ? h("span", { class: "badge" }, "read-only") : null,
      h("span", { class: "muted at" }, state.signedOut ? null : state.at ? `as of ${local(state.at).slice(11)}` : "asking…"),
    ),
    state.away
      ? h(
          "p",
          { class: "stale", role: "alert" },
          state.data
            ? `The service does not answer: these numbers are from ${local(state.at)}. `
            : "The service does not answer. ",
          state.error.message,
        )
      : null,
    state.signedOut
      ? signInForm(state.refused, {
          isIn() {
            state.refused = null;
            load().then(findDomains);
          },
          isRefused(error) {
            state.refused = error;
            render();
          },
          leaves: () => sessionStorage.setItem(RETURN, state.search),
        })
      : null,
    state.error && !state.away && !state.signedOut ? refusal(state.error) : null,
    state.data ? h("div", { key: state.search, class: "page" }, page.view(view, state.data)) : null,
  ];
}

history.scrollRestoration = "manual";
listen(bindings(view, NAVIGATION));
read();
render();
begin();
setInterval(() => {
  if (!document.hidden) render(); // what ticks
}, 1000);
