// One workflow: its state, and where that came from.

import { get, segment } from "./api.js";
import { h } from "./dom.js";
import { ago, asCurl, at, card, copy, facts, raw } from "./parts.js";
import { number } from "./text.js";

export const under = "workflows";
export const title = () => "Workflow";

const path = (view) => `v1/workflows/${segment(view.params.key ?? "")}`;

export async function load(view, signal) {
  const { data, text, headers } = await get(path(view), {}, { signal });
  return { data, text, etag: headers.get("ETag") };
}

export function view(view, { data, text, etag }) {
  const { effect_id: effect, action_id: action, timestamp, ...others } = data.provenance;
  return [
    h("p", { class: "lead" }, h("code", { class: "key" }, data.workflow_key)),
    h(
      "div",
      { class: "columns" },
      card(
        "Workflow",
        facts([
          ["Version", number(data.version)],
          ["ETag", h("code", {}, etag)],
          ["Schema version", number(data.schema_version)],
          ["Updated", ago(data.updated_at)],
        ]),
        h("p", { class: "tools" }, asCurl(view, "GET", path(view)), copy("Copy ETag", etag, view)),
      ),
      card(
        "Provenance",
        facts([
          ["Effect", h("code", {}, effect)],
          ["Action", action ? h("code", {}, action) : "–"],
          ["Computed", at(timestamp)],
          ...Object.entries(others).map(([name, value]) => [name, h("code", {}, JSON.stringify(value))]),
        ]),
      ),
    ),
    card("State and provenance", raw(text, "State")),
  ];
}
