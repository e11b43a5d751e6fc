"""Registrations by key: point reads, locks, and the move to another track."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import BigInteger, String, Uuid, bindparam, select, update

from app.domain.events import Key
from app.domain.positions import Position
from app.domain.registration import Registration
from app.store.database import Connection
from app.store.rows import COLUMNS, KEYS, TABLE, arrays, is_row_of, registration_of
from app.store.statements import Statement

_asked = arrays(*KEYS, name="asked")

# The rows of some entities: what point reads and lookups are, and what a batch is folded onto.
_READ_KEYS = select(*COLUMNS).join(_asked, is_row_of(_asked.c.entity_id, _asked.c.domain))
READ = Statement(_READ_KEYS)

# The same in the order of their keys, each row locked before the next: two batches that share rows wait for each
# other instead of deadlocking.
LOCK = Statement(_READ_KEYS.order_by(*_asked.c).with_for_update(of=TABLE))

# The same, without those that somebody else has locked.
LOCK_FREE = Statement(_READ_KEYS.order_by(*_asked.c).with_for_update(of=TABLE, skip_locked=True))


async def get_entity_states(
    connection: Connection, keys: Sequence[Key], *, lock: bool = False
) -> dict[Key, Registration]:
    """The registrations of those entities that have one, by key; locked until the transaction ends when `lock`."""
    rows = await (LOCK if lock else READ).rows(
        connection,
        asked_entity_id=[entity_id for entity_id, _ in keys],
        asked_domain=[domain for _, domain in keys],
    )
    return {(row[0], row[1]): registration_of(row) for row in rows}


async def lock_unchanged(connection: Connection, read: Sequence[Registration]) -> list[Registration]:
    """Those of the rows that are still as they were read, locked until the transaction ends.

    It waits for nobody: a row that somebody else has locked is left out.
    """
    rows = await LOCK_FREE.rows(
        connection, asked_entity_id=[each.entity_id for each in read], asked_domain=[each.domain for each in read]
    )
    versions = {(row["entity_id"], row["domain"]): row["version"] for row in rows}
    return [each for each in read if versions.get((each.entity_id, each.domain)) == each.version]


async def get_entity_state(
    connection: Connection, entity_id: UUID, domain: str, *, lock: bool = False
) -> Registration | None:
    """The registration of one entity, or None; locked until the transaction ends when `lock`."""
    return (await get_entity_states(connection, [(entity_id, domain)], lock=lock)).get((entity_id, domain))


# Another track for one entity: position and version change, nothing else.
REBASE = Statement(
    update(TABLE)
    .where(is_row_of(bindparam("of_entity", type_=Uuid()), bindparam("of_domain", type_=String())))
    .values(
        last_applied_sequence=bindparam("sequence", type_=BigInteger()),
        last_applied_partition=bindparam("partition", type_=String()),
        last_applied_offset=bindparam("offset", type_=BigInteger()),
        version=TABLE.c.version + 1,
    )
    .returning(*COLUMNS)
)


async def rebase(
    connection: Connection, entity_id: UUID, domain: str, position: Position
) -> tuple[Registration, Registration] | None:
    """Move an entity to `position`, on whatever track that is; the row before and after, or None without a row."""
    before = await get_entity_state(connection, entity_id, domain, lock=True)
    if before is None:
        return None
    [moved] = await REBASE.rows(
        connection,
        of_entity=entity_id,
        of_domain=domain,
        sequence=position.sequence,
        partition=position.partition,
        offset=position.offset,
    )
    return before, registration_of(moved)
