// The work of `test_generators.py` with openapi-fetch and the types that openapi-typescript generated as `schema.ts`.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

type Schemas = components["schemas"];

const FIRST = 5_000_000_001;
const [url, entity_id, workflow_key] = process.argv.slice(2) as [string, string, string];
const client = createClient<paths>({ baseUrl: url });
const occurred_at = new Date().toISOString();
const common = () => ({ event_id: randomUUID(), entity_id, occurred_at });

const one: Schemas["Initiated"] = {
  ...common(),
  type: "registration.initiated",
  position: { sequence: FIRST },
  data: { node_type: "compute", capabilities: { gpu: true } },
};
const posted = await client.POST("/v1/events", { body: one });
assert(posted.data && typeof posted.data === "object" && "outcome" in posted.data, JSON.stringify(posted.error));
assert.equal(posted.data.outcome, "applied");

const many: Schemas["EventArray"] = [
  { ...common(), type: "registration.accepted", position: { sequence: FIRST + 1, previous: FIRST } },
  { ...common(), type: "registration.ack_received", position: { sequence: FIRST + 2, previous: FIRST + 1 } },
];
const batch = await client.POST("/v1/events", { body: many });
assert(batch.data && typeof batch.data === "object" && "summary" in batch.data, JSON.stringify(batch.error));
assert.equal(batch.data.summary.applied, many.length);

const beat: Schemas["Heartbeat"] = {
  ...common(),
  type: "node.heartbeat",
  position: { sequence: FIRST + 9, previous: FIRST + 8 },
};
const early = await client.POST("/v1/events", { body: beat });
assert(early.error && "outcome" in early.error, JSON.stringify(early.data));
assert.equal(early.error.outcome, "early");

const row = await client.GET("/v1/entities/{entity_id}", { params: { path: { entity_id } } });
assert(row.data, JSON.stringify(row.error));
assert.equal(row.data.current_state, "ack_received");
assert.equal(row.data.last_applied_sequence, FIRST + 2);
assert.equal(row.data.ack_deadline, null);

const page = await client.GET("/v1/entities", { params: { query: { state: ["ack_received"], limit: 10 } } });
assert(page.data && typeof page.data === "object", JSON.stringify(page.error));
assert(page.data.items.some((each) => each.entity_id === entity_id));

const counts = await client.GET("/v1/state-counts");
assert(counts.data, JSON.stringify(counts.error));
assert(counts.data.counts.ack_received >= 1);

const commit = (step: string, effect_id: string, header: { "If-Match"?: string; "If-None-Match"?: string }) =>
  client.PUT("/v1/workflows/{workflow_key}", {
    params: { path: { workflow_key }, header },
    body: { state: { step }, provenance: { effect_id, timestamp: occurred_at } },
  });
const created = await commit("reserve", "checkout", { "If-None-Match": "*" });
assert.equal(created.data?.version, 1);
const changed = await commit("pay", "payment", { "If-Match": '"1"' });
assert.equal(changed.data?.version, 2);
const stale = await commit("ship", "shipping", { "If-Match": '"1"' });
assert(stale.error && "actual_version" in stale.error, JSON.stringify(stale.data));
assert.equal(stale.error.actual_version, 2);
const read = await client.GET("/v1/workflows/{workflow_key}", { params: { path: { workflow_key } } });
assert.deepEqual([read.data?.version, read.data?.state], [2, { step: "pay" }]);
