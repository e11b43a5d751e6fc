-- One commit as one guarded UPDATE, one transaction. Each client has keys of its own, and comes by each in turn.
\set n :n + 1
\set k :client_id * 1250 + :n % 1250
\set v :n / 1250 + 1
UPDATE workflow_state
SET version = version + 1,
    state = jsonb_build_object('step', :n::bigint),
    updated_at = clock_timestamp(),
    schema_version = 1,
    provenance = '{"effect_id": "bench", "timestamp": "2026-01-01T00:00:00Z"}'
WHERE workflow_key = 'bench-' || :k::bigint AND version = :v::bigint;
