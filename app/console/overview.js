// The domain at a glance.

import { get } from "./api.js";
import { diagram } from "./diagram.js";
import { h } from "./dom.js";
import { card, otherDomain } from "./parts.js";
import { number } from "./text.js";

export const title = () => "Overview";

export async function load({ domain }, signal) {
  return (await get("v1/state-counts", { domain }, { signal })).data;
}

export function view({ domain }, data) {
  return [
    h("p", { class: "big" }, number(data.total)),
    card("States", diagram(data.counts, otherDomain(domain))),
  ];
}
