-- One heartbeat as one guarded UPDATE, one transaction: the guards are what decides whether it applies.
\set k random(0, :rows / 100 * 91 - 1)
\set i :k / 91 * 100 + :k % 91
\set scattered :i * 618033989 % 4294967296
UPDATE registration_projections
SET last_heartbeat_at = now(),
    liveness_deadline = greatest(liveness_deadline, now() + interval '90 seconds'),
    liveness_timeout_emitted_at = NULL,
    last_applied_event_id = gen_random_uuid(),
    last_applied_partition = NULL,
    last_applied_offset = NULL,
    last_applied_sequence = (extract(epoch FROM now()) * 1000000)::bigint,
    correlation_id = NULL,
    updated_at = now(),
    version = version + 1
WHERE entity_id = (lpad(to_hex(:scattered::bigint), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(:i::bigint), 12, '0'))::uuid
  AND domain = 'registration'
  AND current_state NOT IN ('rejected', 'liveness_expired')
  AND last_applied_sequence < (extract(epoch FROM now()) * 1000000)::bigint
  AND (last_heartbeat_at IS NULL OR last_heartbeat_at < now());
