// The peer *node*: Fastify with postgres.js, one process per worker. The lookup, and a heartbeat as one guarded UPDATE.

import cluster from 'node:cluster'
import Fastify from 'fastify'
import postgres from 'postgres'

const { PORT, SOCKET_DIR, DATABASE, PROCESSES } = process.env
const POOL_SIZE = 8 // connections of a process, each with up to 100 queries on their way

const uuid = { type: 'string', format: 'uuid' }
const time = { type: 'string', format: 'date-time' }
const text = { type: 'string', nullable: true }
const number = { type: 'integer', nullable: true }
const registration = {
  type: 'object',
  properties: {
    entity_id: text, domain: text, current_state: text, node_type: text, node_version: text,
    capabilities: { type: 'object', additionalProperties: true },
    ack_deadline: text, liveness_deadline: text, last_heartbeat_at: text,
    ack_timeout_emitted_at: text, liveness_timeout_emitted_at: text, last_applied_event_id: text,
    last_applied_partition: text, last_applied_offset: number, last_applied_sequence: number,
    registered_at: text, updated_at: text, correlation_id: text, version: number,
  },
}
const heartbeat = {
  type: 'object',
  additionalProperties: false,
  required: ['event_id', 'type', 'entity_id', 'position', 'occurred_at'],
  properties: {
    event_id: uuid,
    type: { const: 'node.heartbeat' },
    entity_id: uuid,
    domain: { type: 'string', minLength: 1, maxLength: 128, default: 'registration' },
    position: {
      type: 'object',
      additionalProperties: false,
      required: ['sequence'],
      properties: { sequence: { type: 'integer', minimum: 0 } },
    },
    occurred_at: time,
    correlation_id: { ...uuid, nullable: true },
    data: {
      type: 'object',
      additionalProperties: false,
      properties: { heartbeat_at: time, liveness_deadline: time },
      default: {},
    },
  },
}
const result = {
  type: 'object',
  properties: {
    event_id: text, outcome: text, reason: text, entity_id: text, domain: text, current_state: text,
    version: number,
    stands_at: { type: 'object', nullable: true, properties: { sequence: { type: 'integer' } } },
  },
}
const domain = { type: 'string', minLength: 1, maxLength: 128, default: 'registration' }
const lookup = {
  params: { type: 'object', properties: { entity_id: uuid } },
  querystring: { type: 'object', properties: { domain } },
  response: { 200: registration },
}

function serve() {
  const sql = postgres({
    host: SOCKET_DIR,
    port: 5432,
    database: DATABASE,
    username: 'postgres',
    max: POOL_SIZE,
    max_lifetime: null,
    connection: { TimeZone: 'UTC' },
    types: {
      bigint: { to: 20, from: [20], serialize: String, parse: Number },
      // A Date would lose the microseconds.
      date: { to: 1184, from: [1184], serialize: String, parse: (at) => at.replace(' ', 'T').replace('+00', 'Z') },
    },
  })
  const app = Fastify({ logger: false })

  app.get('/v1/entities/:entity_id', { schema: lookup }, async (request, reply) => {
    const { entity_id } = request.params
    const [row] = await sql`
      SELECT entity_id, domain, current_state, node_type, node_version, capabilities, ack_deadline, liveness_deadline,
             last_heartbeat_at, ack_timeout_emitted_at, liveness_timeout_emitted_at, last_applied_event_id,
             last_applied_partition, last_applied_offset, last_applied_sequence, registered_at, updated_at,
             correlation_id, version
      FROM registration_projections WHERE entity_id = ${entity_id} AND domain = ${request.query.domain}`
    if (!row) return reply.code(404).send({ detail: `there is no entity ${entity_id}` })
    reply.header('ETag', `"${row.version}"`)
    return row
  })

  app.post('/v1/events', { schema: { body: heartbeat, response: { 200: result } } }, async (request, reply) => {
    const event = request.body
    const sequence = event.position.sequence
    const at = event.data.heartbeat_at ?? event.occurred_at
    const [row] = await sql`
      UPDATE registration_projections
      SET last_heartbeat_at = ${at},
          liveness_deadline = coalesce(${event.data.liveness_deadline ?? null}::timestamptz,
            greatest(liveness_deadline, ${at}::timestamptz + interval '90 seconds')),
          liveness_timeout_emitted_at = NULL,
          last_applied_event_id = ${event.event_id}, last_applied_sequence = ${sequence},
          correlation_id = ${event.correlation_id ?? null}, updated_at = ${event.occurred_at}, version = version + 1
      WHERE entity_id = ${event.entity_id} AND domain = ${event.domain} AND last_applied_sequence < ${sequence}
        AND current_state NOT IN ('rejected', 'liveness_expired')
        AND (last_heartbeat_at IS NULL OR last_heartbeat_at < ${at})
      RETURNING current_state, version`
    if (row) return answer(event, 'applied', null, row, sequence)
    return explain(event, sequence, reply)
  })

  // Why nothing was updated.
  async function explain(event, sequence, reply) {
    const [row] = await sql`
      SELECT current_state, version, last_applied_sequence, last_applied_event_id
      FROM registration_projections WHERE entity_id = ${event.entity_id} AND domain = ${event.domain}`
    if (!row) return answer(event, 'ignored', 'unknown entity', {}, null)
    const stands_at = row.last_applied_sequence
    if (stands_at === null) return reply.code(409).send({ detail: "the positions can't be compared" })
    if (stands_at > sequence) return answer(event, 'stale', 'the row is further on', row, stands_at)
    if (stands_at === sequence) {
      if (row.last_applied_event_id === event.event_id) {
        return answer(event, 'duplicate', 'this event has already been applied', row, stands_at)
      }
      return reply.code(409).send({ detail: 'two events claim one position' })
    }
    const [recorded] = await sql`
      UPDATE registration_projections
      SET last_applied_event_id = ${event.event_id}, last_applied_sequence = ${sequence},
          correlation_id = ${event.correlation_id ?? null}, updated_at = ${event.occurred_at}, version = version + 1
      WHERE entity_id = ${event.entity_id} AND domain = ${event.domain} AND version = ${row.version}
      RETURNING current_state, version`
    if (!recorded) return reply.code(503).send({ detail: 'another writer was faster' })
    return answer(event, 'ignored', 'terminal, or not newer', recorded, sequence)
  }

  app.get('/readyz', async () => {
    await sql`SELECT 1`
    return { status: 'ready' }
  })

  app.listen({ port: Number(PORT), host: '127.0.0.1' })
}

function answer(event, outcome, reason, row, sequence) {
  return {
    event_id: event.event_id,
    outcome,
    reason,
    entity_id: event.entity_id,
    domain: event.domain,
    current_state: row.current_state ?? null,
    version: row.version ?? null,
    stands_at: sequence === null ? null : { sequence },
  }
}

if (cluster.isPrimary) {
  for (let i = 0; i < Number(PROCESSES); i++) cluster.fork()
  cluster.on('exit', () => process.exit(1))
} else {
  serve()
}
