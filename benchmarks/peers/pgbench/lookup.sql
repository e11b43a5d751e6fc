-- The point lookup, straight on the database.
\set i random(0, :rows - 1)
\set scattered :i * 618033989 % 4294967296
SELECT entity_id, domain, current_state, node_type, node_version, capabilities, ack_deadline, liveness_deadline,
       last_heartbeat_at, ack_timeout_emitted_at, liveness_timeout_emitted_at, last_applied_event_id,
       last_applied_partition, last_applied_offset, last_applied_sequence, registered_at, updated_at, correlation_id,
       version
FROM registration_projections
WHERE entity_id = (lpad(to_hex(:scattered::bigint), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(:i::bigint), 12, '0'))::uuid
  AND domain = 'registration';
