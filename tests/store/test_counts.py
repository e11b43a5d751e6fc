"""The state counts equal a full count at every commit."""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from enum import StrEnum
from itertools import count
from random import Random
from typing import Any

import asyncpg
import pytest

from app.domain.events import Event, key_of
from app.domain.folding import fold
from app.domain.projection import REGISTRATION
from app.domain.registration import Timing
from app.domain.states import RegistrationState
from app.projection.projector import Projector
from app.store import upsert
from app.store.counts import Miscount
from app.store.database import Connection, Database
from app.store.registrations import REGISTRATIONS
from tests.making import NODE, WAY_TO_ACTIVE, Json, at, event, node

DOMAINS = ("registration", "edge")
PATIENCE = 60.0  # seconds; only a test that fails waits that long
S = RegistrationState
NONE = dict.fromkeys(S, 0)


async def miscounts(database: Database) -> list[Miscount]:
    """The differences between the counters and a full count, in one snapshot."""
    return await database.read(REGISTRATIONS.counts.verify_counts)


async def counts(database: Database, domain: str = "registration") -> dict[StrEnum, int]:
    """The counts that the service reports."""
    return await database.read(lambda connection: REGISTRATIONS.counts.count_by_state(connection, domain))


def recorded(state: RegistrationState, sequence: int, **fields: Any) -> Event:
    """An event that puts a row into any state."""
    data: Json = {"current_state": str(state), "node_type": "compute", "registered_at": at(0)}
    return event("registration.recorded", sequence, data=data, **fields)


def some_events(random: Random, sequence: int) -> list[Event]:
    """A batch for a few of twenty nodes: most events change states, some change nothing."""
    batch = []
    for number in random.sample(range(20), 6):
        fields: Json = {"entity_id": node(number), "domain": random.choice(DOMAINS)}
        if random.random() < 0.5:
            batch.append(recorded(random.choice(list(S)), sequence, **fields))
        else:
            batch.append(event(random.choice([*WAY_TO_ACTIVE, "node.heartbeat"]), sequence, **fields))
    return batch


# --- One by one ----------------------------------------------------------------------------------------------------


async def test_each_transition_is_counted(projector: Projector, database: Database) -> None:
    """After each event of a registration its node is counted in its new state, and in no other."""
    for sequence, type_ in enumerate(WAY_TO_ACTIVE, start=1):
        [result] = await projector.persist([event(type_, sequence)])
        assert result.current_state is not None
        assert await counts(database) == NONE | {result.current_state: 1}
    assert await counts(database, "edge") == NONE
    assert await miscounts(database) == []


@pytest.mark.parametrize("before", [None, *S])
async def test_recorded_events_are_counted(
    projector: Projector, database: Database, before: RegistrationState | None
) -> None:
    """Batches for eight nodes, from any state or no row to each of the eight states, are counted right."""
    nodes = dict(zip(S, map(node, range(8)), strict=True))
    if before is not None:
        await projector.persist([recorded(before, 1, entity_id=each) for each in nodes.values()])
    await projector.persist([recorded(state, 2, entity_id=each) for state, each in nodes.items()])
    assert await counts(database) == dict.fromkeys(S, 1)
    assert await miscounts(database) == []


async def test_what_changes_no_state_changes_no_count(projector: Projector, database: Database) -> None:
    """Duplicate, late and ignored events, heartbeats, and two nodes that swap states write no counter."""
    kept = "SELECT xmin, t::text FROM registration_state_counts t ORDER BY t"
    await projector.persist([recorded(S.ACTIVE, 2), recorded(S.REJECTED, 2, entity_id=node(1))])
    before = await database.read(lambda connection: connection.fetch(kept))
    await projector.persist(
        [
            recorded(S.ACTIVE, 2),
            recorded(S.REJECTED, 1),
            event("node.heartbeat", 3),
            event("registration.accepted", 4),
            recorded(S.REJECTED, 5),
            recorded(S.ACTIVE, 5, entity_id=node(1)),
            event("node.heartbeat", 1, entity_id=node(2)),
        ]
    )
    await projector.foresee([recorded(S.ACCEPTED, 9), recorded(S.ACCEPTED, 9, entity_id=node(3))])
    assert await database.read(lambda connection: connection.fetch(kept)) == before
    assert await miscounts(database) == []


async def test_the_slots_take_turns(projector: Projector, database: Database) -> None:
    """Successive transactions use different slots: a slot may be negative, the sum cannot."""
    for sequence in range(1, 2 * upsert.SLOTS + 1):
        await projector.persist([recorded((S.ACTIVE, S.ACCEPTED)[sequence % 2], sequence)])
    rows = await database.read(
        lambda connection: connection.fetch("SELECT slot, count FROM registration_state_counts")
    )
    assert {row["slot"] for row in rows} == set(range(upsert.SLOTS))
    assert min(row["count"] for row in rows) < 0
    assert await counts(database) == NONE | {S.ACTIVE: 1}


async def test_a_rollback_takes_the_counts_back(projector: Projector, database: Database) -> None:
    """A rollback after `save` undoes the counts too."""
    await projector.persist([recorded(S.ACTIVE, 1)])

    async def given_up(connection: Connection) -> None:
        [read] = (await REGISTRATIONS.get_entity_states(connection, [(NODE, "registration")])).values()
        events = [recorded(S.REJECTED, 2), recorded(S.ACCEPTED, 2, entity_id=node(1))]
        folded = fold(REGISTRATION, {key_of(NODE, "registration"): read}, events, Timing(), by_position=False)
        await REGISTRATIONS.upsert.save(connection, folded.saves)
        assert (await REGISTRATIONS.counts.count_by_state(connection, "registration"))[S.REJECTED] == 1
        raise KeyError("given up")

    with pytest.raises(KeyError):
        await database.write(given_up)
    assert await counts(database) == NONE | {S.ACTIVE: 1}
    assert await miscounts(database) == []


# --- Many at once --------------------------------------------------------------------------------------------------


@pytest.fixture
async def rival(database_url: str) -> AsyncIterator[Projector]:
    """A second writer with its own connections."""
    database = Database(database_url, pool_size=4, statement_timeout=timedelta(seconds=5))
    yield Projector(database, Timing())
    await database.close()


async def test_the_counts_are_exact_at_every_commit(
    projector: Projector, rival: Projector, database: Database, database_url: str
) -> None:
    """While six writers race for the same rows, the counts equal a full count in every snapshot."""
    sequences = count(1)

    async def write(writer: Projector, seed: int) -> None:
        random = Random(seed)
        for _ in range(40):
            await writer.persist(some_events(random, next(sequences)))

    async with asyncio.timeout(PATIENCE):
        writers = asyncio.gather(*(write((projector, rival)[seed % 2], seed) for seed in range(6)))
        looks = 0
        while not writers.done():
            assert await miscounts(database) == []
            looks += 1
        await writers
    assert looks
    assert await miscounts(database) == []
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        "SELECT domain, current_state, count(*) FROM registration_projections GROUP BY 1, 2"
    )
    await connection.close()
    there = Counter({(domain, state): number for domain, state, number in rows})
    for domain in DOMAINS:
        assert await counts(database, domain) == {state: there[domain, state] for state in S}


async def test_writers_of_the_same_counters_do_not_deadlock(
    projector: Projector, rival: Projector, database: Database, database_url: str
) -> None:
    """Batches that move nodes in opposite ways between two states, in two domains, wait without a deadlock."""
    there, back = (S.ACTIVE, S.REJECTED), (S.REJECTED, S.ACTIVE)
    sequences = count(1)

    async def write(writer: Projector, first: int, ways: tuple[RegistrationState, ...]) -> None:
        for turn in range(30):
            batch = [
                recorded(ways[turn % 2], next(sequences), entity_id=node(first + number), domain=domain)
                for number in range(5)
                for domain in DOMAINS[:: 1 if turn % 3 else -1]
            ]
            await writer.persist(batch)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(
            *(write((projector, rival)[n % 2], 100 * n, (there, back)[n % 2]) for n in range(4)),
        )
    assert await miscounts(database) == []
    connection = await asyncpg.connect(database_url)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await connection.fetchval(deadlocks) == 0
    await connection.close()


# --- A writer that is killed ---------------------------------------------------------------------------------------


def write_until_killed(url: str, seed: int) -> None:
    """Apply batches on two connections for as long as the process lives."""

    async def write() -> None:
        database = Database(url, pool_size=2, statement_timeout=timedelta(seconds=10))
        projector = Projector(database, Timing())
        sequences = count(1 + 1_000_000 * seed)

        async def lane(random: Random) -> None:
            while True:
                await projector.persist(some_events(random, next(sequences)))

        await asyncio.gather(*(lane(Random(f"{seed} {number}")) for number in range(2)))

    asyncio.run(write())


async def test_a_writer_that_is_killed_leaves_exact_counts(database: Database, database_url: str) -> None:
    """Writers killed by SIGKILL at work, four times over, leave exact counts."""
    context = multiprocessing.get_context("spawn")
    connection = await asyncpg.connect(database_url)
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pqs'"
    versions = "SELECT coalesce(sum(version), 0) FROM registration_projections"
    try:
        for seed in range(4):
            before = await connection.fetchval(versions)
            process = context.Process(target=write_until_killed, args=(database_url, seed), daemon=True)
            process.start()
            try:
                async with asyncio.timeout(PATIENCE):
                    while await connection.fetchval(versions) < before + 300:  # noqa: ASYNC110 - they are another process's
                        await asyncio.sleep(0.005)
            finally:
                process.kill()
                await asyncio.to_thread(process.join, PATIENCE)
            async with asyncio.timeout(PATIENCE):
                while await connection.fetchval(backends) > 0:  # noqa: ASYNC110 - PostgreSQL can only be asked
                    await asyncio.sleep(0.005)
            other = Database(database_url, pool_size=1, statement_timeout=timedelta(seconds=5))
            assert await miscounts(other) == []
            await other.close()
    finally:
        await connection.close()
    assert sum((await counts(database)).values()) > 0
