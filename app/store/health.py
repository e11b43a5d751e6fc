"""Whether a database can serve: its encoding, schema, rights and sequences, and whether it takes writes."""

from typing import Any

from app.errors import ReadOnlyError, SchemaMismatchError, SequenceBehindError
from app.store.schema import check_encoding, check_revision
from app.store.sequences import behind

# What a session is told of its server and database.
LOOK = """
SELECT current_setting('server_encoding'), current_setting('transaction_read_only') = 'on', pg_is_in_recovery(),
    to_regclass('alembic_version') IS NOT NULL,
    coalesce(has_table_privilege(to_regclass('alembic_version'), 'SELECT'), true)
"""
REVISION = "SELECT version_num FROM alembic_version"

# Lists the rights that the service needs and its role lacks.
LACKING_RIGHTS = """
SELECT string_agg(format('%s on %s', needed, name), ', ')
FROM (
SELECT needed, name FROM (VALUES
    ('registration_projections', 'SELECT,INSERT,UPDATE'),
    ('registration_state_counts', 'SELECT,INSERT,UPDATE'),
    ('workflow_state', 'SELECT,INSERT,UPDATE'),
    ('workflow_actions', 'SELECT,INSERT,UPDATE,DELETE'),
    ('outbox', 'SELECT,INSERT,UPDATE,DELETE'),
    ('watermarks', 'SELECT,INSERT,UPDATE,DELETE'),
    ('dead_letters', 'SELECT,INSERT,UPDATE,DELETE'),
    ('held_entities', 'SELECT,INSERT,UPDATE,DELETE'),
    ('held_messages', 'SELECT,INSERT,DELETE'),
    ('dead_letter_runs', 'SELECT,INSERT,UPDATE,DELETE'),
    ('api_keys', 'SELECT,UPDATE'),
    ('api_key_revision', 'SELECT'),
    ('workflow_quotas', 'SELECT,UPDATE'),
    ('audit_log', 'SELECT,INSERT'),
    ('sessions', 'SELECT,INSERT,DELETE'),
    ('changes', 'SELECT,INSERT,UPDATE'),
    ('changes_floor', 'SELECT,INSERT,UPDATE'),
    ('snapshot_topics', 'SELECT,INSERT,UPDATE')
) AS tables (name, rights),
unnest(string_to_array(rights, ',')) AS needed
WHERE NOT has_table_privilege(name, needed)
UNION ALL
SELECT needed, 'changes_id_seq' FROM unnest(ARRAY['SELECT', 'USAGE']) AS needed
WHERE NOT has_sequence_privilege('changes_id_seq', needed)
UNION ALL
SELECT needed, 'the slices of changes' FROM unnest(ARRAY['DELETE', 'TRUNCATE']) AS needed
WHERE EXISTS (
    SELECT FROM pg_inherits
    WHERE inhparent = 'changes'::regclass AND NOT has_table_privilege(inhrelid, needed)
)
) AS lacking
"""


async def examine(connection: Any, *, writes: bool = True) -> str:
    """The schema's revision, if the database can serve; `writes`: as the primary.

    Raises UnusableDatabaseError, SchemaMismatchError (for rights too), SequenceBehindError and ReadOnlyError.
    """
    encoding, read_only, is_standby, is_migrated, may_look = await connection.fetchrow(LOOK)
    check_encoding(encoding)
    if not may_look:
        raise SchemaMismatchError("the database role lacks rights: SELECT on alembic_version, and maybe more")
    revision = check_revision(await connection.fetchval(REVISION) if is_migrated else None)
    if rights := await connection.fetchval(LACKING_RIGHTS):
        raise SchemaMismatchError(f"the database role lacks rights: {rights}")
    if not writes:
        return revision
    if is_standby:
        raise ReadOnlyError("the database is a standby, which takes no writes")
    if read_only:
        raise ReadOnlyError("the database is read-only now")
    if late := await behind(connection):
        names = ", ".join(each.sequence.rpartition(".")[2] for each in late)
        raise SequenceBehindError(
            f"a sequence is behind its table, as after logical replication: {names}; run `pqs migrate`"
        )
    return revision
