"""Every statement over `workflow_state` and `workflow_actions`, and row ↔ Workflow beside it."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import msgspec
from sqlalchemy import text

from app.domain.workflows import ActionConflict, Commit, Committed, StateConflict, Workflow
from app.store.database import Connection, Record
from app.store.statements import Statement

PRUNE_LOCK = 0x7071_735F_7072_6E  # "pqs_prn": one session at a time removes old actions
PRUNE_ROWS = 1000  # actions that one transaction removes, at most

JSON_PLACES = tuple(Workflow.__struct_fields__.index(name) for name in ("state", "provenance"))  # of a row

CommitOutcome = Committed | StateConflict | ActionConflict

_decode = msgspec.json.Decoder(dict[str, object]).decode


def workflow_of(row: Record | Sequence[Any]) -> Workflow:
    """The columns of `workflow_state`, in their order, as a Workflow."""
    workflow_key, version, state, updated_at, schema_version, provenance = row
    return Workflow(workflow_key, version, _decode(state), updated_at, schema_version, _decode(provenance))


# Reads the rows of some workflows.
READ = Statement(text("SELECT * FROM workflow_state WHERE workflow_key = ANY(CAST(:keys AS text[]))"))


async def get_states(connection: Connection, keys: Sequence[str]) -> dict[str, Workflow]:
    """The rows of these workflows, by key; workflows without a row are left out."""
    rows = await READ.rows(connection, keys=list(keys))
    return {row[0]: workflow_of(row) for row in rows}


# Finds the rows of some workflows that another transaction has locked; it locks the others.
LOCKED = Statement(
    text("""
WITH free AS (
    SELECT workflow_key FROM workflow_state WHERE workflow_key = ANY(CAST(:keys AS text[]))
    ORDER BY workflow_key FOR UPDATE SKIP LOCKED
)
SELECT workflow_key FROM workflow_state WHERE workflow_key = ANY(CAST(:keys AS text[]))
EXCEPT SELECT workflow_key FROM free
""")
)


async def locked(connection: Connection, keys: Sequence[str]) -> set[str]:
    """The keys of these workflows whose rows another transaction keeps locked now."""
    return {row[0] for row in await LOCKED.rows(connection, keys=list(keys))}


# Applies each commit of a batch once. `asked` reads the row and the action of each commit, in one snapshot. `updated`
# and `inserted` write the commits whose expected version was found and whose action was not, guarded by that version
# again, because another writer may have come in between. `recorded` writes their actions.
#
# A commit that succeeds has seen the newest version of its row, and so the actions of all earlier versions: no action
# is applied twice, and no record of one exists already. Every writer locks rows in the order of keys, first the
# existing rows, then the new ones: so writers do not deadlock. The clock is read after the snapshot, and so after the
# commit of the version before: `updated_at` does not go back.
#
# app/store/rows.py has the reason for `= ANY`.
COMMIT = Statement(
    text("""
WITH asked AS MATERIALIZED (
    SELECT
        given.*, clock_timestamp() AS at,
        stood.version AS stood_version, stood.state AS stood_state, stood.updated_at AS stood_updated_at,
        stood.schema_version AS stood_schema_version, stood.provenance AS stood_provenance,
        action.version AS action_version, action.committed_at, action.provenance AS action_provenance,
        CASE
            WHEN action.version IS NULL AND coalesce(stood.version, 0) = given.expected_version THEN 'free'
            WHEN action.version IS NULL THEN 'conflict'
            WHEN action.schema_version = given.schema_version
                AND action.state_digest = sha256(convert_to(given.state::text, 'UTF8')) THEN 'replayed'
            ELSE 'other'
        END AS found
    FROM unnest(
        CAST(:keys AS text[]), CAST(:expected_versions AS bigint[]), CAST(:states AS jsonb[]),
        CAST(:schema_versions AS integer[]), CAST(:provenances AS jsonb[]), CAST(:tried AS boolean[])
    ) WITH ORDINALITY
        AS given (workflow_key, expected_version, state, schema_version, provenance, tried, place)
    LEFT JOIN workflow_state AS stood ON stood.workflow_key = ANY(ARRAY[given.workflow_key])
    LEFT JOIN workflow_actions AS action
        ON action.workflow_key = ANY(ARRAY[given.workflow_key])
            AND action.action_id = given.provenance ->> 'action_id'
), updated AS (
    UPDATE workflow_state AS w
    SET version = w.version + 1, state = asked.state, updated_at = asked.at, schema_version = asked.schema_version,
        provenance = asked.provenance
    FROM asked
    WHERE w.workflow_key = ANY(ARRAY[asked.workflow_key]) AND w.version = asked.expected_version
        AND asked.found = 'free' AND asked.tried
    RETURNING w.*
), inserted AS (
    INSERT INTO workflow_state (workflow_key, version, state, updated_at, schema_version, provenance)
    SELECT workflow_key, 1, state, at, schema_version, provenance FROM asked
    WHERE expected_version = 0 AND found = 'free' AND tried
    ON CONFLICT (workflow_key) DO NOTHING
    RETURNING *
), done AS (
    SELECT * FROM updated UNION ALL SELECT * FROM inserted
), recorded AS (
    INSERT INTO workflow_actions
        (workflow_key, action_id, version, state_digest, committed_at, schema_version, provenance)
    SELECT
        workflow_key, provenance ->> 'action_id', version, sha256(convert_to(state::text, 'UTF8')), updated_at,
        schema_version, provenance
    FROM done WHERE (provenance ->> 'action_id') IS NOT NULL
)
SELECT NULL AS place, 'committed' AS found, done.* FROM done
UNION ALL
SELECT
    place, found, workflow_key,
    coalesce(action_version, stood_version),
    CASE found WHEN 'replayed' THEN state WHEN 'conflict' THEN stood_state END,
    coalesce(committed_at, stood_updated_at),
    CASE found WHEN 'replayed' THEN schema_version ELSE stood_schema_version END,
    coalesce(action_provenance, stood_provenance)
FROM asked WHERE found <> 'free'
""")
)


async def commit(connection: Connection, commits: Sequence[Commit]) -> list[CommitOutcome | None]:
    """The outcome of each commit, in the order given; None for a commit that met another one and must be tried again.

    It is one statement: an error undoes all of it. Of several commits to one workflow, only one is tried. A conflict
    is judged by a snapshot taken during the call.
    """
    ordered = sorted(commits, key=lambda each: each.workflow_key)
    tried: dict[str, Commit] = {}
    for each in ordered:
        best = tried.setdefault(each.workflow_key, each)
        if each.expected_version > best.expected_version:  # it knows a newer version
            tried[each.workflow_key] = each
    rows = await COMMIT.rows(
        connection,
        keys=[each.workflow_key for each in ordered],
        expected_versions=[each.expected_version for each in ordered],
        states=[each.state for each in ordered],
        schema_versions=[each.schema_version for each in ordered],
        provenances=[each.provenance for each in ordered],
        tried=[tried[each.workflow_key] is each for each in ordered],
    )
    outcomes: dict[int, CommitOutcome] = {}
    for place, found, *row in rows:
        if found == "committed":
            outcomes[id(tried[row[0]])] = Committed(workflow_of(row))
        else:
            each = ordered[place - 1]
            outcomes[id(each)] = _not_written(each, found, row)
    return [outcomes.get(id(each)) for each in commits]


def _not_written(asked: Commit, found: str, row: Sequence[Any]) -> CommitOutcome:
    version: int | None = row[1]
    if found == "replayed":
        return Committed(workflow_of(row), replayed=True)
    if found == "other":
        return ActionConflict(asked.action_id or "", version or 0)
    return StateConflict(asked.expected_version, None if version is None else workflow_of(row))


# Locks the removal of actions, until the transaction ends.
PRUNE_LOCKED = Statement(text("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))"))

# Removes the oldest actions beyond their retention. It skips rows that another session has locked.
PRUNE = Statement(
    text(
        "WITH removed AS (DELETE FROM workflow_actions WHERE ctid = ANY(ARRAY("
        "SELECT ctid FROM workflow_actions WHERE committed_at < now() - CAST(:retention AS interval)"
        " ORDER BY committed_at LIMIT CAST(:rows AS bigint) FOR UPDATE SKIP LOCKED)) RETURNING 1)"
        " SELECT count(*) FROM removed"
    )
)


async def prune(connection: Connection, retention: timedelta) -> int | None:
    """Remove up to PRUNE_ROWS actions older than `retention`, inside a transaction, and return their number.

    None means that another session is removing actions.
    """
    if not await PRUNE_LOCKED.value(connection, key=PRUNE_LOCK):
        return None
    return cast("int", await PRUNE.value(connection, retention=retention, rows=PRUNE_ROWS))
