"""Histories against a model: the log gives what an observer read while the events were applied."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.domain.changes import TRIGGERS, ChangeOutcome, Logging, change
from app.domain.events import EventBase
from app.domain.registration import Registration, Timing
from app.domain.states import RegistrationState
from app.errors import ForgottenError, HistoryGoneError, NotFoundError
from app.feed.history import History, Moment
from app.feed.retention import Retention
from app.projection.changes import ChangeLog
from app.projection.projector import Projector
from app.store import changes, erasure
from app.store.changes import Logged
from app.store.database import Connection, Database
from app.store.history import MAX_OF_EVENT, Clock, Order
from app.store.registrations import REGISTRATIONS
from tests.feed.test_feed import made, write
from tests.feed.test_retention import KEEP, age
from tests.making import NODE, event, node, row, when
from tests.strategies import in_domain, logs, stored

ACTIVE, RECEIVED = RegistrationState.ACTIVE, RegistrationState.ACK_RECEIVED
NOW = "SELECT clock_timestamp()"


@pytest.fixture
def history(database: Database) -> History:
    """The history under test."""
    return History(database)


def moment(as_of: datetime, clock: Clock = Clock.KNOWN, entity_id: UUID = NODE) -> Moment:
    """An entity at a time."""
    return Moment(entity_id, "registration", as_of, clock)


async def row_of(database: Database, entity_id: UUID, domain: str) -> Registration | None:
    """The stored row."""
    found = await database.read(REGISTRATIONS.get_entity_states, [(entity_id, domain)])
    return next(iter(found.values()), None)


async def now(database: Database) -> datetime:
    """The time by the database's clock."""
    return await database.read(lambda connection: connection.fetchval(NOW))


async def everything(history: History, entity_id: UUID, domain: str, order: Order, limit: int) -> list[Logged]:
    """All changes of a history, page by page."""
    seen: list[Logged] = []
    more = True
    while more:
        place = seen[-1].id if seen else None
        page = await history.page(entity_id, domain, order=order, place=place, limit=limit)
        assert page.complete
        assert len(page.items) <= limit
        seen += page.items
        more = page.more
    return seen


async def state_at(history: History, at: Moment) -> RegistrationState | None:
    """The state at a moment, or None if there was no entity, or only its tombstone."""
    try:
        return await history.state_at(at)
    except (NotFoundError, ForgottenError):
        return None


class Model:
    """An observer's record of one entity: its row after each event, the times, and the changes to be logged."""

    def __init__(self) -> None:
        self.row: Registration | None = None
        self.seen: list[tuple[datetime, Registration | None]] = []
        self.logged: list[tuple[datetime, RegistrationState | None]] = []  # when it occurred, the state after it

    def see(self, event: EventBase, after: Registration | None, at: datetime, logging: Logging) -> None:
        """Record the row after an event."""
        before, self.row = self.row, after
        self.seen.append((at, after))
        if after is None or (before is not None and before.version == after.version):
            return
        if _is_tombstone(after):
            is_logged = not _is_tombstone(before)
        else:
            is_logged = logging is Logging.ALL or isinstance(event, TRIGGERS) or _state(before) is not _state(after)
        if is_logged:
            self.logged.append((event.occurred_at, _state(after)))

    def occurred(self, as_of: datetime) -> RegistrationState | None:
        """The state after the last change that had occurred by then."""
        return next((state for at, state in self.logged[::-1] if at <= as_of), None)


def _is_tombstone(row: Registration | None) -> bool:
    return row is not None and row.forgotten_at is not None


def _state(row: Registration | None) -> RegistrationState | None:
    return None if row is None or _is_tombstone(row) else row.current_state


def _left(change: Logged) -> str | None:
    """The state that a change left."""
    return None if change.outcome == ChangeOutcome.FORGOTTEN else change.current_state


@given(log=logs(), logging=st.sampled_from([Logging.TRANSITIONS, Logging.ALL]), limit=st.integers(1, 5))
@stored
async def test_the_log_says_what_was_seen(
    database: Database, log: Sequence[EventBase], logging: Logging, limit: int
) -> None:
    """A history ends at the row, its changes join, and by both clocks it gives the state that was observed."""
    history, domain = History(database), str(uuid4())
    projector = Projector(database, Timing(), log=ChangeLog(logging, rows=logging is Logging.ALL))
    models: dict[UUID, Model] = {}
    for sent in in_domain(log, domain):
        model = models.setdefault(sent.entity_id, Model())
        await projector.persist([sent])
        model.see(sent, await row_of(database, sent.entity_id, domain), await now(database), logging)
    for entity_id, model in models.items():
        if model.row is None:
            continue
        seen = await everything(history, entity_id, domain, Order.ASC, limit)
        assert await everything(history, entity_id, domain, Order.DESC, limit) == seen[::-1]
        assert [_left(each) for each in seen] == [state for _, state in model.logged]
        assert [each.before for each in seen] == [None, *(_left(each) for each in seen[:-1])]
        versions = [each.version for each in seen]
        assert versions == sorted(set(versions))
        assert seen[-1].current_state == model.row.current_state
        is_last = logging is Logging.ALL and not _is_tombstone(model.row)
        assert seen[-1].version == model.row.version or not is_last
        for at, after in model.seen:
            asked = Moment(entity_id, domain, at, Clock.KNOWN)
            assert await state_at(history, asked) == _state(after)
            if logging is Logging.ALL and _state(after) is not None:
                assert await history.row_at(asked) == after
        for at, _ in model.logged:
            for later in (timedelta(microseconds=-1), timedelta(), timedelta(microseconds=1)):
                asked = Moment(entity_id, domain, at + later, Clock.OCCURRED)
                assert await state_at(history, asked) == model.occurred(asked.as_of)


async def test_retention_leaves_an_incomplete_history(database: Database, history: History) -> None:
    """After retention the rest comes in either order, from any place, and is marked incomplete."""
    first = change(
        None, row(RECEIVED, version=1), UUID(int=1), "registration.recorded", ChangeOutcome.APPLIED, when(0)
    )
    await write(database, [first])
    others = [
        change(row(RECEIVED, version=n - 1), row(ACTIVE, version=n), None, "x", ChangeOutcome.APPLIED, when(n))
        for n in range(2, 6)
    ]
    await write(database, others)
    for version, days in [(1, 9), (2, 8), (3, 3), (4, 2), (5, 1)]:
        await age(database, version, timedelta(days=days), version)

    async def asked(order: Order, limit: int) -> list[tuple[list[int], bool]]:
        pages, place, more = [], None, True
        while more:
            page = await history.page(NODE, "registration", order=order, place=place, limit=limit)
            pages.append(([each.version for each in page.items], page.complete))
            place, more = page.items[-1].id, page.more
        return pages

    assert await asked(Order.ASC, 2) == [([1, 2], True), ([3, 4], True), ([5], True)]
    assert await asked(Order.DESC, 3) == [([5, 4, 3], True), ([2, 1], True)]
    await Retention(database, KEEP).remove()
    assert await asked(Order.ASC, 2) == [([3, 4], False), ([5], False)]
    assert await asked(Order.DESC, 2) == [([5, 4], False), ([3], False)]


async def test_before_the_retention_there_is_no_state(database: Database, history: History) -> None:
    """Before the log's start no state is known; after it, an entity without changes had its present state, and one
    with changes the state before the first of them."""
    await write(database, [made(1, entity=1), made(2, entity=2)])
    for version, days in [(1, 9), (2, 3)]:
        await age(database, version, timedelta(days=days), version)
    await Retention(database, KEEP).remove()
    projector = Projector(database, Timing(), log=ChangeLog(Logging.OFF))
    await projector.persist([event("registration.initiated", 1)])
    present = await now(database)
    between, before = present - timedelta(days=8), present - timedelta(days=10)
    assert await history.state_at(moment(between, entity_id=node(2))) is RECEIVED
    for clock in Clock:
        assert await history.state_at(moment(between, clock)) is RegistrationState.PENDING_REGISTRATION
        with pytest.raises(HistoryGoneError, match="the log goes back to"):
            await history.state_at(moment(before, clock))
    with pytest.raises(HistoryGoneError, match="the log goes back to"):
        await history.state_at(moment(before, entity_id=node(2)))
    with pytest.raises(HistoryGoneError, match="or was logged without it"):
        await history.row_at(moment(between))
    with pytest.raises(NotFoundError):
        await history.state_at(moment(present, entity_id=node(3)))
    with pytest.raises(HistoryGoneError, match="or was logged without it"):
        await history.row_at(moment(present, entity_id=node(2)))
    assert await history.state_at(moment(present + timedelta(days=1), entity_id=node(2))) is ACTIVE


async def test_an_entity_without_changes_is_known(database: Database, history: History) -> None:
    """An entity without changes has an empty, incomplete history; an unknown entity is not found."""
    await Projector(database, Timing(), log=ChangeLog(Logging.OFF)).persist([event("registration.initiated", 1)])
    page = await history.page(NODE, "registration", order=Order.ASC, place=None, limit=10)
    assert (page.items, page.more, page.complete) == ([], False, False)
    assert (
        await history.state_at(moment(await now(database) + timedelta(minutes=1)))
        is RegistrationState.PENDING_REGISTRATION
    )
    with pytest.raises(HistoryGoneError):
        await history.state_at(moment(when(0)))
    for order in Order:
        with pytest.raises(NotFoundError):
            await history.page(node(2), "registration", order=order, place=None, limit=10)


async def test_a_forgotten_entity_was_there_before(database: Database, history: History) -> None:
    """A forgotten entity has a state before its forgetting, and is a tombstone after it."""
    first = change(None, row(ACTIVE, version=1), UUID(int=1), "registration.recorded", ChangeOutcome.APPLIED, when(1))
    rejected = row(RegistrationState.REJECTED, version=2)
    forgotten = change(row(ACTIVE), rejected, None, "registration.forgotten", ChangeOutcome.FORGOTTEN, when(5))
    await write(database, [first, forgotten])
    assert await history.state_at(moment(when(4), Clock.OCCURRED)) is ACTIVE
    with pytest.raises(ForgottenError) as caught:
        await history.state_at(moment(when(5), Clock.OCCURRED))
    assert (caught.value.forgotten_at, caught.value.permanent) == (when(5), False)
    page = await history.page(NODE, "registration", order=Order.ASC, place=None, limit=10)
    assert [each.outcome for each in page.items] == ["applied", "forgotten"]


async def test_what_was_erased_is_not_guessed(database: Database, history: History) -> None:
    """Before a forget that erased, the state is gone; after it there was a tombstone, until the entity began anew."""
    projector = Projector(database, Timing(), log=ChangeLog())

    async def lived(first: int) -> datetime:
        for n, type_ in enumerate(("registration.initiated", "registration.accepted"), first):
            await projector.persist([event(type_, n)])
        return await now(database)

    async def forgotten(*, erase: bool) -> datetime:
        after = await row_of(database, NODE, "registration")
        assert after is not None
        await projector.persist([event("registration.forgotten", (after.position.sequence or 0) + 1)])
        if erase:
            await database.write(erasure.erase, (NODE, "registration"), after.version + 1, [])
        return await now(database)

    async def then(at: datetime) -> str:
        try:
            return await history.state_at(moment(at))
        except (ForgottenError, HistoryGoneError) as error:
            return type(error).__name__

    moments = [await lived(1), await forgotten(erase=False), await lived(4), await forgotten(erase=True)]
    assert [await then(at) for at in moments] == ["HistoryGoneError"] * 3 + ["ForgottenError"]
    page = await history.page(NODE, "registration", order=Order.ASC, place=None, limit=10)
    assert [(each.version, each.outcome) for each in page.items] == [(3, "forgotten"), (6, "forgotten")]
    assert not page.complete
    moments += [await lived(7)]
    assert [await then(at) for at in moments[3:]] == ["ForgottenError", "accepted"]
    assert await then(await forgotten(erase=False)) == "ForgottenError"
    assert await then(moments[4]) == "accepted"


async def test_after_a_gap_in_the_log_nothing_is_guessed(database: Database, history: History) -> None:
    """While the log was off the state changed: from the last change before that on, it is not known."""
    logged, unlogged = (Projector(database, Timing(), log=ChangeLog(each)) for each in (Logging.ALL, Logging.OFF))
    await logged.persist([event("registration.initiated", 1)])
    before = await now(database)
    await unlogged.persist([event("registration.accepted", 2)])
    with pytest.raises(HistoryGoneError, match="not logged"):
        await history.state_at(moment(before))
    await logged.persist([event("registration.ack_requested", 3)])
    with pytest.raises(HistoryGoneError, match="not logged"):
        await history.state_at(moment(before))
    assert await history.state_at(moment(await now(database))) is RegistrationState.AWAITING_ACK


async def test_a_tombstone_whose_forget_has_expired(database: Database, history: History) -> None:
    """It was one since the log goes back; before that, nobody knows."""
    await write(database, [made(1, entity=1)])
    await age(database, 1, timedelta(days=9), 1)
    await Retention(database, KEEP).remove()
    await Projector(database, Timing(), log=ChangeLog(Logging.OFF)).persist(
        [event("registration.initiated", 1), event("registration.forgotten", 2)]
    )
    present = await now(database)
    with pytest.raises(ForgottenError):
        await history.state_at(moment(present))
    with pytest.raises(HistoryGoneError):
        await history.state_at(moment(present - timedelta(days=30)))
    page = await history.page(NODE, "registration", order=Order.ASC, place=None, limit=10)
    assert (page.items, page.complete) == ([], False)


async def test_an_event_has_its_changes_and_its_rows(database: Database, history: History) -> None:
    """An event gives its changes and rows in the domains asked about, up to a bound."""
    projector = Projector(database, Timing(), log=ChangeLog())
    here, there = event("registration.initiated", 1), event("registration.initiated", 1, domain="there")
    same = [
        replace(here, entity_id=node(number), domain=domain)
        for number in range(MAX_OF_EVENT)
        for domain in ("registration", "there")
    ]
    await projector.persist(same)
    for domains in (None, ["registration"], ["there", "registration"]):
        found = await history.event(here.event_id, domains)
        assert len(found.changes) == len(found.rows) == MAX_OF_EVENT
        assert {each.domain for each in found.changes} <= set(domains or ["registration", "there"])
        assert {each.domain for each in found.rows} <= set(domains or ["registration", "there"])
    for domains in ([], ["elsewhere"]):
        with pytest.raises(NotFoundError, match=str(here.event_id)):
            await history.event(here.event_id, domains)
    with pytest.raises(NotFoundError):
        await history.event(there.event_id, None)


async def test_histories_do_not_wait_for_writers(database: Database, history: History) -> None:
    """A history does not wait for open transactions, and leaves out uncommitted changes."""
    await write(database, [made(1)])
    blocked = asyncio.Event()

    async def hold(connection: Connection) -> None:
        await changes.add(connection, [made(2)], 3600)
        page = await history.page(node(1), "registration", order=Order.DESC, place=None, limit=1)
        assert [each.version for each in page.items] == [1]
        blocked.set()

    await database.write(hold)
    assert blocked.is_set()
    page = await history.page(node(1), "registration", order=Order.DESC, place=None, limit=1)
    assert [each.version for each in page.items] == [2]
