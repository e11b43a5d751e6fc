"""State counts: how many entities are in each state, kept in slots, and compared with a full count."""

from msgspec import Struct
from sqlalchemy import BigInteger, String, bindparam, func, literal_column, select

from app.domain.states import RegistrationState
from app.store.database import Connection
from app.store.rows import COUNTS, STATES, TABLE
from app.store.statements import Statement

# How many rows are in each state of a domain, by the counters.
COUNT = Statement(
    select(COUNTS.c.current_state, func.sum(COUNTS.c.count).cast(BigInteger()))
    .where(COUNTS.c.domain == bindparam("domain", type_=String()))
    .group_by(COUNTS.c.current_state)
)


async def count_by_state(connection: Connection, domain: str) -> dict[RegistrationState, int]:
    """How many entities of the domain are in each of the states, the empty ones included."""
    counts = dict.fromkeys(RegistrationState, 0)
    for state, count in await COUNT.rows(connection, domain=domain):
        counts[STATES[state]] = count
    return counts


# Where the counters differ from the rows: a full count, in one snapshot with the counters.
_kept = (
    select(COUNTS.c.domain, COUNTS.c.current_state, func.sum(COUNTS.c.count).cast(BigInteger()).label("kept"))
    .group_by(COUNTS.c.domain, COUNTS.c.current_state)
    .subquery("kept")
)
_counted = (
    select(TABLE.c.domain, TABLE.c.current_state, func.count().label("counted"))
    .group_by(TABLE.c.domain, TABLE.c.current_state)
    .subquery("counted")
)
VERIFY = Statement(
    select(
        func.coalesce(_kept.c.domain, _counted.c.domain).label("domain"),
        func.coalesce(_kept.c.current_state, _counted.c.current_state).label("state"),
        func.coalesce(_kept.c.kept, 0),
        func.coalesce(_counted.c.counted, 0),
    )
    .select_from(
        _kept.join(
            _counted,
            (_kept.c.domain == _counted.c.domain) & (_kept.c.current_state == _counted.c.current_state),
            full=True,
        )
    )
    .where(func.coalesce(_kept.c.kept, 0) != func.coalesce(_counted.c.counted, 0))
    .order_by(literal_column("1"), literal_column("2"))
)


class Miscount(Struct, frozen=True):
    """A counter that differs from the rows."""

    domain: str
    state: RegistrationState
    kept: int
    counted: int


async def verify_counts(connection: Connection) -> list[Miscount]:
    """The counters that differ from a full count; an empty list when all is well. Reads every row."""
    return [Miscount(domain, STATES[state], *both) for domain, state, *both in await VERIFY.rows(connection)]
