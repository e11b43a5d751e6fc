"""The projector: events in, outcomes out; batches, races and retries, on a real PostgreSQL."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from random import Random
from uuid import UUID

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from app.domain.events import Event, EventBase
from app.domain.positions import Position
from app.domain.registration import Registration, Timing
from app.domain.results import Outcome, Result
from app.errors import ContentionError
from app.projection.projector import ATTEMPTS, Projector
from app.store.database import Connection, Database
from app.store.registrations import REGISTRATIONS
from app.wire.events import read_event
from tests.making import NODE, event, life, node

APPLIED, IGNORED, DUPLICATE, STALE, EARLY, CONFLICT = Outcome
MINE = UUID(int=1)
ACTIVE = {"current_state": "active", "node_type": "compute", "registered_at": "2026-01-01T00:00:00Z"}
PATIENCE = 60.0  # seconds; only a test that fails waits that long


def heartbeat(
    sequence: int, *, entity_id: UUID = NODE, previous: int | None = None, domain: str = "registration"
) -> Event:
    """A heartbeat whose time rises with its sequence."""
    position = {"sequence": sequence} if previous is None else {"sequence": sequence, "previous": previous}
    return event("node.heartbeat", sequence, entity_id=entity_id, position=position, domain=domain)


def initiated(sequence: int = 1, *, entity_id: UUID = NODE, domain: str = "registration") -> Event:
    """An event that begins a registration."""
    return event("registration.initiated", sequence, entity_id=entity_id, domain=domain)


async def row_of(database: Database, entity_id: UUID = NODE, domain: str = "registration") -> Registration | None:
    """The stored row."""

    async def work(connection: Connection) -> Registration | None:
        return await REGISTRATIONS.get_entity_state(connection, entity_id, domain)

    return await database.read(work)


async def table(url: str) -> list[str]:
    """Every row as text, with the transaction that wrote it."""
    async with connected(url) as connection:
        rows = await connection.fetch("SELECT xmin, t::text AS row FROM registration_projections t ORDER BY row")
    return [str(row) for row in rows]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection separate from the service's."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def outcomes(results: Sequence[Result]) -> list[Outcome]:
    """The outcomes of the results, in order."""
    return [result.outcome for result in results]


# --- persist and foresee -------------------------------------------------------------------------------------------


def all_outcomes() -> list[Event]:
    """A batch with every outcome, for a row at sequence 10 and an unknown node 1."""
    return [
        heartbeat(11),
        heartbeat(11),
        event("registration.accepted", 12),
        heartbeat(3),
        heartbeat(20, previous=19),
        replace(heartbeat(12), event_id=MINE),
        event("node.heartbeat", 1, position={"partition": "p", "offset": 99}),
        heartbeat(1, entity_id=node(1)),
        heartbeat(2, entity_id=node(1), previous=1),
        initiated(3, entity_id=node(1)),
    ]


EXPECTED = [
    (APPLIED, "active", 2, 11),
    (DUPLICATE, "active", 2, 11),
    (IGNORED, "active", 3, 12),
    (STALE, "active", 3, 12),
    (EARLY, "active", 3, 12),
    (CONFLICT, "active", 3, 12),
    (CONFLICT, "active", 3, 12),
    (IGNORED, None, None, None),
    (EARLY, None, None, None),
    (APPLIED, "pending_registration", 1, 3),
]


async def test_each_event_has_its_result_in_the_order_given(projector: Projector, database: Database) -> None:
    """For each of the six outcomes, the result has outcome, state, version and position right after the event."""
    await projector.persist([event("registration.recorded", 10, data=ACTIVE)])
    sent = all_outcomes()
    results = await projector.persist(sent)
    assert [(result.event_id, result.entity_id, result.domain) for result in results] == [
        (event.event_id, event.entity_id, event.domain) for event in sent
    ]
    assert [
        (result.outcome, result.current_state, result.version, result.stands_at and result.stands_at.number)
        for result in results
    ] == EXPECTED
    assert [result.reason is None for result in results] == [outcome is APPLIED for outcome, *_ in EXPECTED]
    row = await row_of(database)
    assert row is not None
    assert (row.version, row.position) == (3, Position(sequence=12))


async def test_foreseeing_answers_what_taking_in_then_does_and_writes_nothing(
    projector: Projector, database_url: str
) -> None:
    """A dry run has the results of the real run, and leaves every row unchanged."""
    await projector.persist([event("registration.recorded", 10, data=ACTIVE)])
    before = await table(database_url)
    foreseen = await projector.foresee(all_outcomes())
    assert await table(database_url) == before
    assert foreseen == await projector.persist(all_outcomes())


async def test_a_dry_run_can_be_folded_by_position(projector: Projector, database: Database) -> None:
    """A dry run orders a batch by position as the real run does."""
    sent = [heartbeat(2), initiated(1)]
    assert outcomes(await projector.foresee(sent)) == [IGNORED, APPLIED]
    assert outcomes(await projector.foresee(sent, by_position=True)) == [APPLIED, APPLIED]
    assert await row_of(database) is None


async def test_nothing_to_take_in_is_no_mistake(projector: Projector) -> None:
    """An empty batch has no results, and is not an error."""
    assert await projector.persist([]) == []
    assert await projector.foresee([]) == []


async def test_a_batch_is_folded_as_it_comes_unless_by_position(projector: Projector) -> None:
    """In the order sent, late events are stale; by position all are applied, and results keep the order sent."""
    sent = [heartbeat(3), initiated(1), heartbeat(2)]
    elsewhere = [replace(event, entity_id=node(1)) for event in sent]
    as_it_comes = await projector.persist(sent)
    assert [(result.outcome, result.version) for result in as_it_comes] == [
        (IGNORED, None),
        (APPLIED, 1),
        (APPLIED, 2),
    ]
    by_position = await projector.persist(elsewhere, by_position=True)
    assert [(result.outcome, result.version) for result in by_position] == [(APPLIED, 3), (APPLIED, 1), (APPLIED, 2)]


async def test_by_position_each_entity_is_ordered_on_its_own(projector: Projector) -> None:
    """Each entity's events are sorted among themselves, wherever they are in the batch."""
    nodes = [node(number) for number in range(3)]
    sent = [heartbeat(sequence, entity_id=n) for sequence in (3, 2) for n in nodes]
    sent += [initiated(entity_id=n) for n in reversed(nodes)]
    results = await projector.persist(sent, by_position=True)
    assert [(result.entity_id, result.version) for result in results] == [
        *((n, 3) for n in nodes),
        *((n, 2) for n in nodes),
        *((n, 1) for n in reversed(nodes)),
    ]


async def test_one_entity_id_in_two_domains_is_two_entities(projector: Projector, database: Database) -> None:
    """The same entity id in two domains has separate rows, positions and versions."""
    await projector.persist([initiated(5), initiated(1, domain="edge"), heartbeat(2, domain="edge")])
    results = await projector.persist([heartbeat(4), heartbeat(4, domain="edge")])
    assert outcomes(results) == [STALE, APPLIED]
    here, there = await row_of(database), await row_of(database, domain="edge")
    assert here is not None
    assert there is not None
    assert (here.version, here.position, there.version, there.position) == (
        1,
        Position(sequence=5),
        3,
        Position(sequence=4),
    )


async def test_taking_a_log_in_again_changes_nothing(projector: Projector, database_url: str) -> None:
    """Replaying a log, the last event of each entity is a duplicate, the others are stale, and no row is written."""
    log = [read_event(msgspec.json.encode(item)) for number in (1, 2) for item in life(node(number))]
    assert set(outcomes(await projector.persist(log))) == {APPLIED}
    before = await table(database_url)
    assert outcomes(await projector.persist(log)) == [*[STALE] * 4, DUPLICATE] * 2
    assert await table(database_url) == before


async def test_the_timing_is_that_of_the_projector(database: Database) -> None:
    """A deadline that the event does not give is computed from the settings."""
    projector = Projector(database, Timing(ack_timeout=timedelta(seconds=7)))
    await projector.persist([initiated(1), event("registration.accepted", 2)])
    row = await row_of(database)
    assert row is not None
    assert row.ack_deadline == row.updated_at + timedelta(seconds=7)


async def test_a_batch_may_be_larger_than_an_array(projector: Projector, database: Database) -> None:
    """One transaction can apply 12,000 events of 3,000 entities."""
    nodes = [node(number) for number in range(3000)]
    sent = [initiated(entity_id=n) for n in nodes]
    sent += [heartbeat(sequence, entity_id=n) for sequence in (2, 3, 4) for n in nodes]
    results = await projector.persist(sent)
    assert Counter(outcomes(results)) == {APPLIED: 12_000}

    async def work(connection: Connection) -> list[int]:
        rows = await REGISTRATIONS.get_entity_states(connection, [(n, "registration") for n in nodes])
        return [row.version for row in rows.values()]

    assert await database.read(work) == [4] * 3000


# --- Races ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def rival(database_url: str) -> AsyncIterator[Projector]:
    """A second writer with its own connections."""
    database = Database(database_url, pool_size=4, statement_timeout=timedelta(seconds=5))
    yield Projector(database, Timing())
    await database.close()


async def until_blocked(url: str, sessions: int = 1) -> None:
    """Wait until this many sessions of the database wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(PATIENCE), connected(url) as connection:
        while await connection.fetchval(waiting) < sessions:  # noqa: ASYNC110 - PostgreSQL can only be asked
            await asyncio.sleep(0.005)


async def test_racing_writers_lose_no_update(projector: Projector, rival: Projector, database: Database) -> None:
    """Of many batches for the same rows on eight connections, each event counts once, as version 1, 2, 3…"""
    nodes, last = [node(number) for number in range(4)], 60
    log = [initiated(entity_id=n) for n in nodes]
    log += [heartbeat(sequence, entity_id=n, previous=sequence - 1) for sequence in range(2, last + 1) for n in nodes]
    # Every batch is there twice, and in the hands of whoever comes first.
    batches = [log[start : start + 10] for start in range(0, len(log), 10)] * 2
    Random(1).shuffle(batches)
    counted: dict[UUID, list[int | None]] = {n: [] for n in nodes}

    async def work(writer: Projector) -> None:
        while batches:
            batch = batches.pop()
            results = await writer.persist(batch)
            for result in results:
                if result.outcome in {APPLIED, IGNORED}:
                    counted[result.entity_id].append(result.version)
            if EARLY in outcomes(results):
                batches.insert(0, batch)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(work(writer) for writer in (projector, rival) for _ in range(4)))
    for n in nodes:
        assert sorted(version or 0 for version in counted[n]) == list(range(1, last + 1))
        row = await row_of(database, n)
        assert row is not None
        assert (row.version, row.position) == (last, Position(sequence=last))


async def test_a_batch_that_lost_is_folded_again_on_what_is_there_now(
    projector: Projector, rival: Projector, database: Database, database_url: str
) -> None:
    """After another writer changed a row, the batch is folded again on the new row."""
    await projector.persist([initiated(1), initiated(1, entity_id=node(1))])
    async with connected(database_url) as connection:
        async with connection.transaction():
            await connection.execute("SELECT FROM registration_projections WHERE entity_id = $1 FOR UPDATE", NODE)
            winner = asyncio.create_task(rival.persist([heartbeat(5)]))
            await until_blocked(database_url)
            loser = asyncio.create_task(projector.persist([heartbeat(3), heartbeat(2, entity_id=node(1))]))
            await until_blocked(database_url, sessions=2)
        async with asyncio.timeout(PATIENCE):
            won, lost = await asyncio.gather(winner, loser)
    # PostgreSQL serves those that wait for a row in turn.
    assert (outcomes(won), outcomes(lost)) == ([APPLIED], [STALE, APPLIED])
    row = await row_of(database, node(1))
    assert row is not None
    assert row.version == 2


@pytest.mark.parametrize(("end", "outcome"), [("COMMIT", DUPLICATE), ("ROLLBACK", APPLIED)])
async def test_a_row_that_another_writer_inserts_first_is_folded_onto(
    projector: Projector, database_url: str, end: str, outcome: Outcome
) -> None:
    """Another writer's new row is folded onto if its transaction commits, and only then."""
    await projector.persist([initiated()])
    async with connected(database_url) as connection:
        [inserted] = await connection.fetch("DELETE FROM registration_projections t RETURNING t")
        await connection.execute("BEGIN")
        await connection.execute(
            "INSERT INTO registration_projections SELECT ($1::registration_projections).*", inserted["t"]
        )
        task = asyncio.create_task(projector.persist([initiated()]))
        await until_blocked(database_url)
        await connection.execute(end)
        async with asyncio.timeout(PATIENCE):
            assert outcomes(await task) == [outcome]
    assert len(await table(database_url)) == 1


async def test_from_the_second_attempt_on_the_rows_are_locked(
    projector: Projector, database: Database, database_url: str
) -> None:
    """Batches succeed on a database that rolls back every writer whose rows are not locked."""
    await projector.persist([initiated()])
    await add_trigger(
        database_url,
        "BEFORE UPDATE ON registration_projections FOR EACH STATEMENT",
        """
        PERFORM FROM registration_projections WHERE xmax = pg_current_xact_id()::xid;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'not locked' USING ERRCODE = 'serialization_failure';
        END IF;
        RETURN NULL;
        """,
    )
    assert outcomes(await projector.persist([heartbeat(2)])) == [APPLIED]
    row = await row_of(database)
    assert row is not None
    assert row.version == 2


async def add_trigger(url: str, when: str, body: str) -> None:
    """Add a database trigger that makes PostgreSQL behave as the test needs, and counts its runs."""
    async with connected(url) as connection:
        await connection.execute(
            f"CREATE SEQUENCE attempts; CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"PERFORM nextval('attempts'); {body} END $$; CREATE TRIGGER act {when} EXECUTE FUNCTION act()"
        )


@pytest.mark.parametrize(
    "body",
    [
        "RETURN NULL;",
        "RAISE EXCEPTION 'tie' USING ERRCODE = 'serialization_failure';",
        "RAISE EXCEPTION 'tie' USING ERRCODE = 'deadlock_detected';",
    ],
    ids=["row not written", "serialization failure", "deadlock"],
)
@pytest.mark.parametrize("verb", ["INSERT", "UPDATE"])
async def test_a_batch_that_loses_at_every_attempt_is_given_up_and_nothing_is_written(
    projector: Projector, database_url: str, verb: str, body: str
) -> None:
    """After ATTEMPTS lost races the error allows a retry, and no row of the batch is written."""
    await projector.persist([initiated(entity_id=node(1))])
    before = await table(database_url)
    # A trigger loses the race for the row of one node, as a writer would that is always there first.
    await add_trigger(
        database_url,
        f"BEFORE {verb} ON registration_projections FOR EACH ROW",
        body,
    )
    sent = [heartbeat(2, entity_id=node(1)), initiated(entity_id=node(2))]
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ContentionError, match=f"other writers were faster {ATTEMPTS} times in a row"):
            await projector.persist(sent)
    assert await table(database_url) == before
    async with connected(database_url) as connection:
        assert await connection.fetchval("SELECT last_value FROM attempts") == ATTEMPTS


class Heard:
    """A report that keeps what it hears."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.retries: list[str] = []

    def batch(self, events: Sequence[EventBase], results: Sequence[Result], seconds: float) -> None:
        """Keep how many events had results."""
        assert len(events) == len(results)
        assert seconds > 0
        self.batches.append(len(results))

    def retry(self, reason: str) -> None:
        """Keep the reason."""
        self.retries.append(reason)


async def test_a_report_hears_of_batches_and_lost_races(database: Database, database_url: str) -> None:
    """The report gets each committed batch once, and the reason of every attempt that lost a race."""
    heard = Heard()
    projector = Projector(database, Timing(), report=heard)
    await projector.persist([initiated(entity_id=node(1)), initiated(entity_id=node(2))])
    await add_trigger(database_url, "BEFORE UPDATE ON registration_projections FOR EACH ROW", "RETURN NULL;")
    with pytest.raises(ContentionError):
        await projector.persist([heartbeat(2, entity_id=node(1))])
    assert heard.batches == [2]
    assert heard.retries == ["guard"] * ATTEMPTS


async def test_locked_rows_are_named(projector: Projector, database: Database, database_url: str) -> None:
    """Of some events, `locked` names the rows that another transaction keeps locked, and no others."""
    known = [initiated(entity_id=node(number)) for number in range(3)]
    await projector.persist(known)
    async with connected(database_url) as other, other.transaction():
        await other.execute("SELECT FROM registration_projections WHERE entity_id = $1 FOR UPDATE", node(1))
        assert await projector.locked(known) == {known[1].key}
    assert await projector.locked(known) == set()


async def test_batches_in_opposite_orders_do_not_deadlock(projector: Projector, rival: Projector) -> None:
    """Two writers that name the same rows, new and known, in opposite orders both succeed each time."""
    nodes = [node(number) for number in range(40)]
    async with asyncio.timeout(PATIENCE):
        for round_ in range(1, 31):
            # Every third round brings entities that nobody knows.
            domain = f"round {round_ // 3}"
            make = initiated if round_ % 3 == 0 else heartbeat
            first = [make(2 * round_, entity_id=n, domain=domain) for n in nodes]
            second = [make(2 * round_ + 1, entity_id=n, domain=domain) for n in reversed(nodes)]
            results = await asyncio.gather(projector.persist(first), rival.persist(second))
            assert [len(result) for result in results] == [len(nodes)] * 2


async def test_a_deadlock_with_somebody_else_is_not_seen(projector: Projector, database_url: str) -> None:
    """If PostgreSQL cancels the batch in a deadlock, the batch starts again and returns its outcomes."""
    await projector.persist([initiated(), initiated(entity_id=node(1))])
    sent = [heartbeat(2), heartbeat(2, entity_id=node(1))]
    low, high = sorted([NODE, node(1)])
    lock = "SELECT FROM registration_projections WHERE entity_id = $1 FOR UPDATE"
    async with asyncio.timeout(PATIENCE), connected(database_url) as connection:
        task = None
        # On a machine that stalls for a second PostgreSQL may pick the other side.
        with suppress(asyncpg.DeadlockDetectedError):
            async with connection.transaction():
                await connection.execute(lock, high)
                task = asyncio.create_task(projector.persist(sent))
                await until_blocked(database_url)
                await connection.execute(lock, low)
        assert task is not None
        assert outcomes(await task) == [APPLIED, APPLIED]
