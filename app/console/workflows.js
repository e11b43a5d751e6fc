// The workflows, the one that changed last first, narrowed by the beginning of their keys.

import { get } from "./api.js";
import { h } from "./dom.js";
import { ago, asCurl, field, filters, link, pager, table } from "./parts.js";
import { number } from "./text.js";

export const title = () => "Workflows";

const asked = ({ limit, cursor, key_prefix }) => ({ order: "newest", key_prefix, limit, cursor });

export async function load({ params }, signal) {
  return (await get("v1/workflows", asked(params), { signal })).data;
}

export function view(view, data) {
  const { params } = view;
  return [
    filters(view, "workflows", {}, field("Key begins with", "key_prefix", params.key_prefix, { spellcheck: "false" })),
    h("p", { class: "tools" }, h("span", { class: "grow" }), asCurl(view, "GET", "v1/workflows", { query: asked(params) })),
    table(
      "Workflows",
      [
        { name: "Key", view: (row) => h("a", { class: "key", href: link("workflow", { key: row.workflow_key }) }, row.workflow_key) },
        { name: "Version", number: true, view: (row) => number(row.version) },
        { name: "Updated", view: (row) => ago(row.updated_at) },
        { name: "Schema", number: true, view: (row) => number(row.schema_version) },
        { name: "Effect", view: (row) => h("code", {}, row.provenance.effect_id) },
        { name: "Action", view: (row) => (row.provenance.action_id ? h("code", {}, row.provenance.action_id) : "–") },
      ],
      data.items,
      { key: (row) => row.workflow_key, none: "No workflow matches." },
    ),
    pager("workflows", params, data),
  ];
}
