"""The sequences that draw keys, and whether one of them is behind its table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from app.store.tables import BLOCK

# Finds the sequences that will draw a key which is there already: logical replication copies rows and leaves
# sequences behind. `outbox` is read by the first columns of its key, `changes` slice by slice. One that this role may
# not read is left out.
BEHIND = f"""
WITH RECURSIVE destinations (destination) AS (
    (SELECT destination FROM outbox ORDER BY destination LIMIT 1)
    UNION ALL
    SELECT (SELECT destination FROM outbox AS o WHERE o.destination > d.destination ORDER BY destination LIMIT 1)
    FROM destinations AS d WHERE d.destination IS NOT NULL
), used (sequence, id, step) AS (
    SELECT pg_get_serial_sequence('outbox', 'id'), (
        SELECT max(newest.id) FROM destinations AS d CROSS JOIN generate_series(0, 3) AS slot
        CROSS JOIN LATERAL (
            SELECT id FROM outbox AS o WHERE o.destination = d.destination AND o.slot = slot.slot::smallint
            ORDER BY id DESC LIMIT 1
        ) AS newest
    ), 1
    UNION ALL SELECT pg_get_serial_sequence('dead_letters', 'id'), (SELECT max(id) FROM dead_letters), 1
    UNION ALL SELECT pg_get_serial_sequence('held_messages', 'id'), (SELECT max(id) FROM held_messages), 1
    UNION ALL SELECT pg_get_serial_sequence('audit_log', 'id'), (SELECT max(id) FROM audit_log), 1
    UNION ALL SELECT 'changes_id_seq', greatest(
        (SELECT max(id) FROM changes), (SELECT max(id) FROM changes_floor)
    ), {BLOCK}
)
SELECT sequence, id, step FROM used
WHERE has_sequence_privilege(sequence, 'SELECT') AND id > CASE
    WHEN has_sequence_privilege(sequence, 'SELECT')
    THEN coalesce(pg_sequence_last_value(sequence::regclass) + step - 1, 0)
END
"""  # noqa: S608 - a number of ours


class Behind(NamedTuple):
    """A sequence that is behind its table: its name, the highest key, and the keys that it draws at once."""

    sequence: str
    id: int
    step: int

    @property
    def mended(self) -> int:
        """The value from which the next one drawn is free."""
        return self.id - (self.id - 1) % self.step


async def behind(connection: Any) -> Sequence[Behind]:
    """The sequences that are behind their tables. It costs a few probes of indexes."""
    return [Behind(*row) for row in await connection.fetch(BEHIND)]


async def mend(connection: Any) -> Sequence[Behind]:
    """Set the sequences that are behind, and return them. Only their owner may."""
    found = await behind(connection)
    for each in found:
        await connection.execute("SELECT setval($1::text::regclass, $2)", each.sequence, each.mended)
    return found
