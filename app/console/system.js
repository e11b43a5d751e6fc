// How the service is.

import { get } from "./api.js";
import { card, facts } from "./parts.js";

export const title = () => "System";

export async function load(view, signal) {
  return (await get("readyz", {}, { signal })).data;
}

export function view(view, data) {
  return card("Readiness", facts([["Status", data.status]]));
}
