"""What the reconciliation with Consul asks of the database: the lock of the process that does it, and rows."""

from collections.abc import AsyncIterator
from typing import cast
from uuid import UUID

from sqlalchemy import text

from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store.database import Connection
from app.store.listing import EntityFilter, get_by_state
from app.store.statements import Statement

LOCK = 0x7071_735F_636E_736C  # "pqs_cnsl": one session at a time reconciles
PAGE = 500  # rows that are read at once

# Makes this session the one that reconciles, until its transaction ends.
LEAD = Statement(text("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))"))

# Finds the next domain by one index lookup. The counters have every domain that has ever had a row.
NEXT_DOMAIN = Statement(
    text("SELECT min(domain) FROM registration_state_counts WHERE domain > CAST(:after AS varchar)")
)


async def lead(connection: Connection) -> bool:
    """Become the one session that reconciles, until the transaction ends. False: another one is."""
    return bool(await LEAD.value(connection, key=LOCK))


async def pages(connection: Connection, states: tuple[RegistrationState, ...]) -> AsyncIterator[list[Registration]]:
    """The rows of all domains in these states, page by page. Each page is as fresh as its own read."""
    domain = cast("str | None", await NEXT_DOMAIN.value(connection, after=""))
    while domain is not None:
        after: UUID | None = None
        more = True
        while more:
            rows, more = await get_by_state(
                connection, EntityFilter(domain=domain, states=states), after=after, limit=PAGE
            )
            if rows:
                yield rows
                after = rows[-1].entity_id
        domain = cast("str | None", await NEXT_DOMAIN.value(connection, after=domain))
