"""What reads that wait ask for: how far entities are, and which states they have passed through."""

from collections.abc import Sequence
from typing import cast

from sqlalchemy import text

from app.domain.events import Key, Name
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store.database import Connection
from app.store.statements import Statement

# Reads the versions of some entities. app/store/rows.py has the reason for `= ANY`.
VERSIONS = Statement(
    text("""
SELECT r.entity_id, r.domain, r.version
FROM unnest(CAST(:entity_ids AS uuid[]), CAST(:domains AS varchar[])) AS asked (entity_id, domain)
JOIN registration_projections AS r
    ON r.entity_id = ANY(ARRAY[asked.entity_id]) AND r.domain = ANY(ARRAY[asked.domain])
""")
)

# Finds, between two versions of an entity, the first change, the state before it, and the first one into some states.
REACHED = Statement(
    text("""
WITH passed AS MATERIALIZED (
    SELECT version, before, current_state FROM changes
    WHERE entity_id = CAST(:entity_id AS uuid) AND domain = CAST(:domain AS varchar)
        AND version > CAST(:after AS bigint) AND version <= CAST(:to AS bigint)
)
SELECT version, before, (
    SELECT min(version) FROM passed WHERE current_state = ANY(CAST(:states AS registration_state[]))
)
FROM passed ORDER BY version LIMIT 1
""")
)


async def versions(connection: Connection, names: Sequence[Name]) -> dict[Key, int]:
    """The versions of these entities by key_of(); those without a row are left out."""
    rows = await VERSIONS.rows(
        connection, entity_ids=[entity_id for entity_id, _ in names], domains=[domain for _, domain in names]
    )
    return {(row[0].bytes, row[1]): row[2] for row in rows}


async def reached(
    connection: Connection, row: Registration, *, after: int, states: frozenset[RegistrationState]
) -> int | None:
    """The first version above `after`, and up to that of the row, in which the entity was in one of the states.

    A change is visible together with the row of its version, so the log has all of them. The versions that it does
    not have left the state as it was. Where the log does not reach back so far, only the row itself counts.
    """
    rows = await REACHED.rows(
        connection, entity_id=row.entity_id, domain=row.domain, after=after, to=row.version, states=sorted(states)
    )
    if not rows:
        return after + 1 if row.current_state in states else None
    first, before, found = rows[0]
    return after + 1 if before in states and first > after + 1 else cast("int | None", found)
