"""What became of one entity, from the change log: its changes, and its state or its row at a moment."""

from datetime import datetime
from typing import TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct

from app.domain.changes import ChangeOutcome
from app.domain.events import key_of
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.errors import ForgottenError, HistoryGoneError, NotFoundError
from app.feed.watches import check_present
from app.store import history
from app.store.changes import Logged
from app.store.database import Connection, Database, Work
from app.store.history import Clock, OfEvent, Order
from app.store.registrations import REGISTRATIONS

T = TypeVar("T")

_read_row = msgspec.json.Decoder(Registration).decode


class HistoryPage(Struct, frozen=True):
    """Some changes of an entity, whether more follow, and whether its log goes back to its beginning."""

    items: list[Logged]
    more: bool
    complete: bool


class Moment(Struct, frozen=True):
    """An entity at a time, by one of the clocks."""

    entity_id: UUID
    domain: str
    as_of: datetime
    clock: Clock


class History:
    """Answers what became of an entity. `database` is the primary.

    An entity's changes become visible in the order of their ids, because its row is locked when they are drawn: so
    nothing is missing between those of an answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, entity_id: UUID, domain: str, *, order: Order, place: int | None, limit: int) -> HistoryPage:
        """Up to `limit` changes beyond the change `place`. Raises NotFoundError for an unknown entity."""
        return await self._database.read(_page, entity_id, domain, order=order, place=place, limit=limit)

    async def event(self, event_id: UUID, domains: list[str] | None) -> OfEvent:
        """What there is of an event in these domains; None for all. Raises NotFoundError when there is nothing."""
        found = await self._database.read(history.of_event, event_id, domains)
        if not found.changes and not found.rows:
            raise NotFoundError(
                f"no change in the log has the event {event_id}, and no row stands at it: it was never sent, or it "
                "changed nothing (duplicate, stale, early, conflict), or it changed no state and its entity has gone "
                "on since, or its changes are older than PQS_CHANGES_KEEP"
            )
        return found

    async def state_at(self, moment: Moment) -> RegistrationState:
        """The state at a moment.

        By KNOWN: after the last change that was stored by then, which is the state that the service gave, but for
        the time of a commit. By OCCURRED: after the last change, in the order of versions, that had occurred by then;
        of what is not in the log any more, it is taken for true that nothing occurs after it is stored.

        Raises NotFoundError when there was no such entity, ForgottenError when there was only its tombstone, and
        HistoryGoneError when the log does not go back so far, or lacks what was erased.
        """
        return await self._database.read(_in_snapshot, _state_at, moment)

    async def row_at(self, moment: Moment) -> Registration:
        """The row as the last change left it that counts at that moment.

        Raises as state_at(), and HistoryGoneError also when that change was logged without its row.
        """
        return await self._database.read(_in_snapshot, _row_at, moment)


async def _page(
    connection: Connection, entity_id: UUID, domain: str, *, order: Order, place: int | None, limit: int
) -> HistoryPage:
    items, more = await history.page(connection, entity_id, domain, order=order, place=place, limit=limit)
    if order is Order.ASC and place is None:
        first = items[0] if items else None
    elif order is Order.DESC and items and not more:
        first = items[-1]
    else:
        first = await history.oldest(connection, entity_id, domain)
    if first is None and await _row_of(connection, entity_id, domain) is None:
        raise NotFoundError(f"there is no entity {entity_id} in domain {domain}")
    return HistoryPage(items, more, first is not None and first.before is None)


async def _in_snapshot(connection: Connection, work: Work[[Moment], T], moment: Moment) -> T:
    """Do the work, all of whose statements see the same."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await work(connection, moment)


async def _state_at(connection: Connection, moment: Moment) -> RegistrationState:
    found = await _last(connection, moment)
    state = await _state_before_changes(connection, moment) if found is None else found.current_state
    return RegistrationState(state)  # a state of the log is plain text


async def _row_at(connection: Connection, moment: Moment) -> Registration:
    found = await _last(connection, moment)
    if found is None:
        await _state_before_changes(connection, moment)  # raises where that is known to be nothing
    if found is None or found.row is None:
        raise HistoryGoneError(
            "the change that made the row of that time is not in the log, or was logged without it"
        )
    return _read_row(found.row)


async def _last(connection: Connection, moment: Moment) -> Logged | None:
    """The change that counts.

    The state that it led to has to be the one that the next change found, or the one of the row. Otherwise changes
    between the two are missing, because they were erased, or happened while the log was off: HistoryGoneError. Raises
    ForgottenError when the entity was forgotten by that change.
    """
    entity_id, domain = moment.entity_id, moment.domain
    found = await history.at(connection, entity_id, domain, moment.as_of, moment.clock)
    if found is None:
        return None
    is_tombstone = found.outcome == ChangeOutcome.FORGOTTEN
    after = None if is_tombstone else found.current_state
    later, _ = await history.page(connection, entity_id, domain, order=Order.ASC, place=found.id, limit=1)
    row = await _row_of(connection, entity_id, domain)
    if later:
        joins = later[0].before == after
    else:
        joins = row is None or after == (None if row.forgotten_at is not None else row.current_state)
    if not joins:
        raise HistoryGoneError("changes of that time are not in the log: they were erased, or not logged")
    if is_tombstone:
        permanent = not later and row is not None and row.forgotten_permanently is True
        raise ForgottenError(entity_id, domain, found.occurred_at, permanent=permanent)
    return found


async def _state_before_changes(connection: Connection, moment: Moment) -> RegistrationState:
    """The state before all changes that the log has of an entity, if it was the state at the moment.

    Raises NotFoundError when there was no entity, ForgottenError when there was only a tombstone, and
    HistoryGoneError when the log began later than the moment, or has only the forget of what was there.
    """
    oldest = await history.oldest(connection, moment.entity_id, moment.domain)
    row = await _row_of(connection, moment.entity_id, moment.domain) if oldest is None else None
    state = None if oldest is None else oldest.before
    if row is not None:
        state = row.current_state
    if state is None:
        raise _not_found(moment)
    began = await history.began(connection)
    if moment.as_of < began:
        raise HistoryGoneError(
            f"the log goes back to {began.isoformat()}: earlier changes were removed, or not logged"
        )
    if row is not None:
        check_present(row)
    if oldest is not None and oldest.outcome == ChangeOutcome.FORGOTTEN:
        raise HistoryGoneError("the entity was forgotten later, and what was logged before may have been erased")
    return state


async def _row_of(connection: Connection, entity_id: UUID, domain: str) -> Registration | None:
    rows = await REGISTRATIONS.get_entity_states(connection, [(entity_id, domain)])
    return rows.get(key_of(entity_id, domain))


def _not_found(moment: Moment) -> NotFoundError:
    return NotFoundError(
        f"there was no entity {moment.entity_id} in domain {moment.domain} at {moment.as_of.isoformat()}"
    )
