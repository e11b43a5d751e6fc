// "Go to": from what somebody has at hand to the page that shows it. A UUID may be a node's or an event's; anything else
// is the beginning of a node's id, or a workflow's key.

import { get, segment } from "./api.js";
import { link, otherDomain } from "./parts.js";
import { UUID } from "./text.js";

const BEGINNING = /^[0-9a-f][0-9a-f-]{0,35}$/i;

// Go to what the text means. Raises an Error that says that there is no such thing.
export async function goTo(text, view) {
  if (!text) return;
  const domain = otherDomain(view.domain);
  if (UUID.test(text)) {
    const found = await one(text, view.domain);
    if (found) return view.go(link("entity", { id: found.entity_id, domain: otherDomain(found.domain) }));
  } else if (BEGINNING.test(text)) {
    const { data } = await get("v1/entities", { id_prefix: text, domain: view.domain, limit: 2 });
    if (data.items.length === 1) return view.go(link("entity", { id: data.items[0].entity_id, domain }));
    if (data.items.length > 1) return view.go(link("entities", { id_prefix: text, domain }));
  }
  if (await isThere(`v1/workflows/${segment(text)}`)) return view.go(link("workflow", { key: text }));
  const { data } = await get("v1/workflows", { key_prefix: text, limit: 1 });
  if (data.items.length) return view.go(link("workflows", { key_prefix: text }));
  throw new Error(`There is no node, event or workflow ${text}.`);
}

// The node with this id, or the one that the event with this id is about.
async function one(id, domain) {
  const { data } = await get("v1/entities", { id_prefix: id, domain });
  if (data.items.length) return data.items[0];
  const event = await get(`v1/events/${id}`).catch(ifMissing);
  return event && (event.data.rows[0] ?? event.data.changes[0]);
}

async function isThere(path) {
  return Boolean(await get(path).catch(ifMissing));
}

function ifMissing(error) {
  if (error.status === 404 || error.status === 422 || error.status === 501) return null;
  throw error;
}
