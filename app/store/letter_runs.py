"""Every statement over `dead_letter_runs`: bulk calls over dead letters, and how far each has come."""

from datetime import datetime
from typing import Literal, cast
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import text

from app.errors import InUseError
from app.store import dead_letters
from app.store.database import Connection, Record
from app.store.dead_letters import LetterFilter
from app.store.statements import Statement

MAX_UNFINISHED = 100  # runs at once; further calls are refused
KEPT_DAYS = 7  # that a finished run is kept
LEASE_SECONDS = 30  # after its last letter, another worker takes a run over

Action = Literal["retry", "delete"]


class BulkRun(Struct, frozen=True, kw_only=True):
    """A bulk call: the letters that matched, and how many are done and failed.

    Letters up to `last_id` are its, and those up to `at_id` are worked off.
    """

    id: UUID
    action: Action
    filters: LetterFilter
    principal: str
    started_at: datetime
    finished_at: datetime | None
    matched: int
    done: int
    failed: int
    last_id: int
    at_id: int


_COLUMNS = "id, action, filters, principal, started_at, finished_at, matched, done, failed, last_id, at_id"
_filters = msgspec.json.Decoder(LetterFilter).decode

# Removes the runs that finished long ago.
PRUNE = Statement(
    text("""
DELETE FROM dead_letter_runs WHERE finished_at < now() - make_interval(days => CAST(:days AS integer))
""")
)

# Counts the runs that are not finished.
UNFINISHED = Statement(text("SELECT count(*) FROM dead_letter_runs WHERE finished_at IS NULL"))

# Reads the unfinished run with this action and these filters.
SAME = Statement(
    text(f"""
SELECT {_COLUMNS} FROM dead_letter_runs
WHERE finished_at IS NULL AND action = CAST(:action AS varchar) AND filters = CAST(:filters AS jsonb)
""")  # noqa: S608 - columns of ours
)

# Begins a run, unless there is one already.
BEGIN = Statement(
    text(f"""
INSERT INTO dead_letter_runs (id, action, filters, principal, matched, last_id)
VALUES (
    CAST(:id AS uuid), CAST(:action AS varchar), CAST(:filters AS jsonb), CAST(:principal AS varchar),
    CAST(:matched AS bigint), CAST(:last_id AS bigint)
)
ON CONFLICT (action, filters) WHERE finished_at IS NULL DO NOTHING
RETURNING {_COLUMNS}
""")  # noqa: S608 - columns of ours
)

# Reads one run.
READ = Statement(text(f"SELECT {_COLUMNS} FROM dead_letter_runs WHERE id = CAST(:id AS uuid)"))  # noqa: S608 - columns of ours

# Takes the oldest unfinished run that nobody works at, for some seconds.
TAKE = Statement(
    text(f"""
UPDATE dead_letter_runs SET leased_until = clock_timestamp() + make_interval(secs => CAST(:lease AS float))
WHERE id = (
    SELECT id FROM dead_letter_runs WHERE finished_at IS NULL AND leased_until < clock_timestamp()
    ORDER BY started_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING {_COLUMNS}
""")  # noqa: S608 - columns of ours
)

# Counts letters, and moves a run beyond them, if it still stands where it was read.
ADVANCE = Statement(
    text("""
UPDATE dead_letter_runs SET
    at_id = CAST(:to_id AS bigint), done = done + CAST(:done AS bigint), failed = failed + CAST(:failed AS bigint),
    leased_until = clock_timestamp() + make_interval(secs => CAST(:lease AS float))
WHERE id = CAST(:id AS uuid) AND at_id = CAST(:from_id AS bigint) AND finished_at IS NULL
RETURNING id
""")
)

# Ends a run. Letters that others have removed meanwhile are done.
FINISH = Statement(
    text("""
UPDATE dead_letter_runs SET finished_at = clock_timestamp(), done = greatest(done, matched - failed)
WHERE id = CAST(:id AS uuid) AND at_id = CAST(:from_id AS bigint) AND finished_at IS NULL
RETURNING done, failed
""")
)

# Removes letters, except for those that hold their entity, and says how many of the latter there are.
REMOVE = Statement(
    text("""
WITH removed AS (
    DELETE FROM dead_letters AS d WHERE id = ANY (CAST(:ids AS bigint[]))
        AND NOT EXISTS (SELECT FROM held_entities AS h WHERE h.letter_id = ANY (ARRAY[d.id]))
    RETURNING id
)
SELECT count(*) FROM dead_letters AS d JOIN held_entities AS h ON h.letter_id = ANY (ARRAY[d.id])
WHERE d.id = ANY (CAST(:ids AS bigint[]))
""")
)


async def begin(
    connection: Connection, id_: UUID, action: Action, wanted: LetterFilter, principal: str
) -> tuple[BulkRun, bool]:
    """Begin a run over the letters that match now, and say whether it is new.

    While such a run is not finished, it is the answer. Raises InUseError if too many are not.
    """
    filters = msgspec.json.encode(wanted).decode()
    same = await SAME.rows(connection, action=action, filters=filters)
    if same:
        return _run(same[0]), False
    await PRUNE.rows(connection, days=KEPT_DAYS)
    if cast("int", await UNFINISHED.value(connection)) >= MAX_UNFINISHED:
        raise InUseError(f"{MAX_UNFINISHED} bulk calls are not finished: wait for one of them")
    matched, last = await dead_letters.count_matching(connection, wanted)
    begun = await BEGIN.rows(
        connection, id=id_, action=action, filters=filters, principal=principal, matched=matched, last_id=last
    )
    if begun:
        return _run(begun[0]), True
    [same_now] = await SAME.rows(connection, action=action, filters=filters)
    return _run(same_now), False


async def get(connection: Connection, id_: UUID) -> BulkRun | None:
    """One run, or None."""
    rows = await READ.rows(connection, id=id_)
    return _run(rows[0]) if rows else None


async def take(connection: Connection) -> BulkRun | None:
    """The oldest unfinished run that nobody works at, or None; for LEASE_SECONDS nobody else gets it."""
    rows = await TAKE.rows(connection, lease=LEASE_SECONDS)
    return _run(rows[0]) if rows else None


async def advance(connection: Connection, run: BulkRun, to_id: int, *, done: int, failed: int) -> bool:
    """Count letters up to an id, and say whether the run still stood at `at_id`: else nothing is written."""
    moved = await ADVANCE.value(
        connection, id=run.id, from_id=run.at_id, to_id=to_id, done=done, failed=failed, lease=LEASE_SECONDS
    )
    return moved is not None


async def finish(connection: Connection, run: BulkRun) -> tuple[int, int] | None:
    """End a run; how many of its letters are done and failed. None if another worker has moved it on."""
    rows = await FINISH.rows(connection, id=run.id, from_id=run.at_id)
    return (rows[0][0], rows[0][1]) if rows else None


async def remove(connection: Connection, ids: list[int]) -> int:
    """Remove letters, and return how many stay because they hold their entity."""
    return cast("int", await REMOVE.value(connection, ids=ids))


def _run(row: Record) -> BulkRun:
    return BulkRun(**{**dict(row), "filters": _filters(row["filters"])})
