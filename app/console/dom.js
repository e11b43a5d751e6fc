// Elements as values, and the patcher that makes a part of the document equal to them.
//
// What is equal is left alone, so focus, selection, scroll positions and what somebody is typing stay. Text is only ever
// set as text: nothing that the service answers is read as markup.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "selected", "disabled", "indeterminate"]);

// An element: h("a", {href: "system"}, "System"). Arrays are spread; null and false keep a place, so that what comes and
// goes does not shift its neighbours. In lists, give each item a `key`.
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children: children.flat(Infinity).map(node) };
}

function node(child) {
  if (child === null || child === undefined || child === false || child === true) return { tag: "#", text: "" };
  return typeof child === "object" ? child : { tag: "#", text: String(child) };
}

// Make the children of `parent` equal to these nodes.
export function patch(parent, nodes) {
  const children = nodes.flat(Infinity).map(node);
  const found = matched(parent, children);
  const kept = new Set(found);
  for (const child of [...parent.childNodes]) if (!kept.has(child)) child.remove();
  let at = parent.firstChild;
  children.forEach((child, index) => {
    const element = found[index] ?? created(child, parent);
    if (element === at) at = at.nextSibling;
    else if (found[index] && parent.moveBefore) parent.moveBefore(element, at); // keeps focus, where browsers have it
    else parent.insertBefore(element, at);
    update(element, child);
  });
}

// For each node, the child of `parent` that becomes it: the one with its key, else the next one of its tag.
function matched(parent, nodes) {
  const keyed = new Map();
  const loose = [];
  for (const child of parent.childNodes) {
    if (child.$key !== undefined) keyed.set(child.$key, child);
    else loose.push(child);
  }
  let next = 0;
  return nodes.map(({ tag, props }) => {
    const key = props?.key;
    if (key !== undefined) {
      const child = keyed.get(key);
      keyed.delete(key);
      return child?.$tag === tag ? child : undefined;
    }
    for (let index = next; index < loose.length; index++) {
      if (loose[index].$tag !== tag) continue;
      next = index + 1;
      return loose[index];
    }
    return undefined;
  });
}

function created({ tag, props }, parent) {
  let element;
  if (tag === "#") element = document.createTextNode("");
  else if (tag === "svg" || parent.namespaceURI === SVG) element = document.createElementNS(SVG, tag);
  else element = document.createElement(tag);
  element.$tag = tag;
  element.$key = props?.key;
  element.$props = {};
  return element;
}

function update(element, { tag, text, props, children }) {
  if (tag === "#") {
    if (element.data !== text) element.data = text;
    return;
  }
  // Before the children: what a select holds depends on its options, so its value is set after them.
  const before = element.$props;
  for (const name of Object.keys(before)) if (!(name in props)) set(element, name, undefined);
  for (const name of Object.keys(props)) {
    if (name !== "value" && props[name] !== before[name]) set(element, name, props[name]);
  }
  patch(element, children);
  if ("value" in props && props.value !== before.value) element.value = props.value ?? "";
  element.$props = props;
}

function set(element, name, value) {
  if (name === "key") return;
  if (name.startsWith("on")) element[name] = value ?? null;
  else if (PROPERTIES.has(name)) element[name] = value ?? false;
  else if (value === undefined || value === null || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : value);
}
