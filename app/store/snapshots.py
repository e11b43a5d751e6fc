"""Snapshots: every statement over `snapshot_topics`, and those that read what is to be published.

A topic has one publisher at a time: the holder of a lease, whose end is a time of the database's clock. Progress is
saved only by the holder, and each save renews the lease.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, String, Uuid, bindparam, select, text, tuple_

from app.domain.events import Name
from app.domain.registration import Registration
from app.errors import PqsError
from app.store.changes import COLUMNS, Place
from app.store.database import Connection, Record
from app.store.registrations import REGISTRATIONS
from app.store.statements import Statement
from app.store.tables import ChangeRow
from app.wire.answers import SnapshotProgress

AT_ONCE = 250  # rows that are fetched in one go
FIRST = (UUID(int=0), "")  # before the key of every row


class LostLeaseError(PqsError):
    """Another publisher holds the lease of the topic."""


class Standing(Struct, kw_only=True):
    """How far a topic is published.

    Everything up to the change at `place` is published, None where nothing is. `requested`, `begun` and `finished`
    count bootstraps; while one runs, `after` is the key of the last row of it that is published. `partitions_before`
    are the numbers of partitions that the topic had when rows were published that are still to be moved.
    """

    topic: str
    topic_id: str | None
    partitions: int | None
    partitions_before: list[int]
    place: Place | None
    requested: int
    begun: int
    finished: int
    after: Name
    rows: int

    @property
    def is_bootstrapping(self) -> bool:
        """Whether a bootstrap runs."""
        return self.begun > self.finished

    def begin_again(self) -> None:
        """Have the last bootstrap run, or run again, from its first row on."""
        self.finished, self.after, self.rows = max(0, self.begun - 1), FIRST, 0


# Makes the row of a topic, of which nothing is published.
MAKE = Statement(text("INSERT INTO snapshot_topics (topic) VALUES (CAST(:topic AS varchar)) ON CONFLICT DO NOTHING"))

# Takes the lease, if it is free, over, or the caller's own.
TAKE = Statement(
    text("""
UPDATE snapshot_topics
SET holder = CAST(:holder AS varchar), held_until = clock_timestamp() + make_interval(secs => CAST(:lease AS float))
WHERE topic = CAST(:topic AS varchar)
    AND (holder IS NULL OR holder = CAST(:holder AS varchar) OR held_until < clock_timestamp())
RETURNING topic, topic_id, partitions, partitions_before, change_id, change_mark, requested, begun, finished,
    after_entity_id, after_domain, rows
""")
)


async def take(connection: Connection, topic: str, holder: str, lease: float) -> Standing | None:
    """Take the lease of a topic for `lease` seconds, in a transaction. None: somebody else has it."""
    await MAKE.rows(connection, topic=topic)
    rows = await TAKE.rows(connection, topic=topic, holder=holder, lease=lease)
    return _standing(rows[0]) if rows else None


def _standing(row: Record) -> Standing:
    place = None if row["change_id"] is None else Place(row["change_id"], row["change_mark"])
    after = FIRST if row["after_entity_id"] is None else (row["after_entity_id"], row["after_domain"])
    return Standing(
        topic=row["topic"],
        topic_id=row["topic_id"],
        partitions=row["partitions"],
        partitions_before=row["partitions_before"],
        place=place,
        requested=row["requested"],
        begun=row["begun"],
        finished=row["finished"],
        after=after,
        rows=row["rows"],
    )


# Saves what is published, and renews the lease. A bootstrap begins when it has no row yet.
SAVE = Statement(
    text("""
UPDATE snapshot_topics SET
    topic_id = CAST(:topic_id AS varchar), partitions = CAST(:partitions AS integer),
    partitions_before = CAST(:partitions_before AS integer[]),
    change_id = CAST(:change_id AS bigint), change_mark = CAST(:change_mark AS integer),
    begun_at = CASE
        WHEN CAST(:begun AS integer) > CAST(:finished AS integer) AND CAST(:rows AS bigint) = 0 THEN clock_timestamp()
        ELSE begun_at
    END,
    finished_at = CASE
        WHEN finished < CAST(:finished AS integer) THEN clock_timestamp()
        WHEN CAST(:begun AS integer) = CAST(:finished AS integer) THEN finished_at
    END,
    begun = CAST(:begun AS integer), finished = CAST(:finished AS integer),
    after_entity_id = CAST(:after_entity_id AS uuid), after_domain = CAST(:after_domain AS varchar),
    rows = CAST(:rows AS bigint),
    held_until = clock_timestamp() + make_interval(secs => CAST(:lease AS float))
WHERE topic = CAST(:topic AS varchar) AND holder = CAST(:holder AS varchar)
RETURNING requested
""")
)


async def save(connection: Connection, standing: Standing, holder: str, lease: float) -> None:
    """Save how far a topic is published, renew the lease, and see whether another bootstrap is requested.

    Raises LostLeaseError where somebody else has the lease now.
    """
    place = standing.place
    requested = await SAVE.value(
        connection,
        topic=standing.topic,
        topic_id=standing.topic_id,
        partitions=standing.partitions,
        partitions_before=standing.partitions_before,
        change_id=None if place is None else place.id,
        change_mark=None if place is None else place.mark,
        begun=standing.begun,
        finished=standing.finished,
        after_entity_id=None if standing.after == FIRST else standing.after[0],
        after_domain=None if standing.after == FIRST else standing.after[1],
        rows=standing.rows,
        holder=holder,
        lease=lease,
    )
    if not isinstance(requested, int):
        raise LostLeaseError(f"another process publishes the snapshots of {standing.topic} now")
    standing.requested = requested


# Gives the lease back.
RELEASE = Statement(
    text("""
UPDATE snapshot_topics SET holder = NULL, held_until = NULL
WHERE topic = CAST(:topic AS varchar) AND holder = CAST(:holder AS varchar)
""")
)


async def release(connection: Connection, topic: str, holder: str) -> None:
    """Give the lease back, so that another publisher need not wait for its end."""
    await RELEASE.rows(connection, topic=topic, holder=holder)


# --- For operators -------------------------------------------------------------------------------------------------

_PROGRESS = """
topic, change_id, requested > finished, rows, begun_at, finished_at,
coalesce(held_until > clock_timestamp(), false), requested
"""

# Asks for a bootstrap.
_REQUEST = (
    "INSERT INTO snapshot_topics AS s (topic) VALUES (CAST(:topic AS varchar))"
    " ON CONFLICT (topic) DO UPDATE SET requested = s.requested + 1 RETURNING "
)
REQUEST = Statement(text(_REQUEST + _PROGRESS))

# Reads how far a topic is published.
PROGRESS = Statement(text(f"SELECT {_PROGRESS} FROM snapshot_topics WHERE topic = CAST(:topic AS varchar)"))  # noqa: S608


async def request(connection: Connection, topic: str) -> SnapshotProgress:
    """Ask for all rows to be published, once more: after a bootstrap that is running."""
    [row] = await REQUEST.rows(connection, topic=topic)
    return SnapshotProgress(*row)


async def progress(connection: Connection, topic: str) -> SnapshotProgress | None:
    """How far a topic is published; None where nobody has published it yet."""
    rows = await PROGRESS.rows(connection, topic=topic)
    return SnapshotProgress(*rows[0]) if rows else None


# --- What is to be published ---------------------------------------------------------------------------------------


class ChangedEntity(Struct, frozen=True):
    """A change, without all that its entity's row says. Where the entity was erased, `entity_id` is None."""

    id: int
    mark: int
    entity_id: UUID | None
    domain: str
    changed_at: datetime

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.id, self.mark)


_by_name = {str(column.key): column for column in COLUMNS}
_id = _by_name["id"]

# Which entities have changed after one place and up to another id, in order.
CHANGED = Statement(
    select(*(_by_name[name] for name in ChangedEntity.__struct_fields__))
    .where(_id > bindparam("after", type_=BigInteger()), _id <= bindparam("to", type_=BigInteger()))
    .order_by(ChangeRow.id)
    .limit(bindparam("limit", type_=BigInteger()))
)


async def changed(connection: Connection, after: int, to: int, *, limit: int) -> list[ChangedEntity]:
    """The first `limit` changes with an id above `after` and up to `to`, which is settled, in order."""
    return [ChangedEntity(*row) for row in await CHANGED.rows(connection, after=after, to=to, limit=limit)]


_rows = REGISTRATIONS.rows

# A page of all rows, tombstones included, by entity id and domain.
SCAN = Statement(
    select(*_rows.columns)
    .where(tuple_(*_rows.keys) > tuple_(bindparam("entity_id", type_=Uuid()), bindparam("domain", type_=String())))
    .order_by(*_rows.keys)
    .limit(bindparam("limit", type_=BigInteger()))
)


async def scan(connection: Connection, after: Name, *, limit: int) -> tuple[Sequence[Registration], bool]:
    """The first `limit` rows after a key, or fewer where they are large; and whether more follow."""
    records, more = await SCAN.page(
        connection, limit=limit, at_once=AT_ONCE, json=_rows.json_places, entity_id=after[0], domain=after[1]
    )
    return [_rows.row(record) for record in records], more
