"""The four laws of order, on a real PostgreSQL: a log ends in the same rows however it is read.

One database serves all examples; each pass over a log writes to a domain of its own, and rows are compared as
PostgreSQL prints them, the domain apart.
"""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from random import Random
from typing import Any, TypeVar
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.domain.events import EventBase, Forgotten, ForgottenData, Recorded
from app.domain.registration import Timing
from app.domain.results import Outcome
from app.projection.batching import Writer
from app.projection.projector import Projector
from app.store.database import Connection, Database
from tests.leases import create_tables
from tests.making import START
from tests.strategies import (
    KINDS,
    LEASE_KIND,
    REGISTRATION_KIND,
    Kind,
    in_domain,
    logs,
    reread_logs,
    seeded_log,
    shuffled_logs,
    stored,
)

T = TypeVar("T")

PATIENCE = 120.0  # seconds; only a test that fails waits that long


def of_each(draw: Callable[[Kind], st.SearchStrategy[T]]) -> st.SearchStrategy[dict[str, T]]:
    """What is drawn for each of the projections, by its name: an example has both, and a test takes its own."""
    return st.fixed_dictionaries({name: draw(kind) for name, kind in KINDS.items()})


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
async def kind(request: pytest.FixtureRequest, database: Database) -> Kind:
    """Each of the projections, with its tables in the database."""
    kind: Kind = request.param
    if kind is LEASE_KIND:
        await database.write(create_tables)
    return kind


@pytest.fixture
def projector(database: Database, kind: Kind) -> Projector:
    """A projector of that projection."""
    return Projector(database, Timing(), store=kind.store)


async def rows(database: Database, kind: Kind, domain: str) -> dict[str, str]:
    """Every row of a domain as PostgreSQL prints it, by entity id."""
    # The server puts all columns of the table together, so that none is forgotten here.
    query = f"SELECT entity_id, (to_jsonb(t) - 'domain')::text FROM {kind.projection.table} t WHERE domain = $1"
    found = await database.read(lambda connection: connection.fetch(query, domain))
    return {str(entity_id): row for entity_id, row in found}


async def one_pass(projector: Projector, database: Database, kind: Kind, log: Sequence[EventBase]) -> dict[str, str]:
    """The rows that the log gives, read once, in order, event by event: what every law compares with."""
    domain = str(uuid4())
    for event in in_domain(log, domain):
        await projector.persist([event])
    return await rows(database, kind, domain)


async def until_done(projector: Projector, batches: Sequence[Sequence[EventBase]], *, by_position: bool) -> None:
    """Send the batches, and those events that are early again until none is."""
    async with asyncio.timeout(PATIENCE):
        while batches:
            early: list[EventBase] = []
            for batch in batches:
                results = await projector.persist(batch, by_position=by_position)
                early += [
                    event for event, result in zip(batch, results, strict=True) if result.outcome is Outcome.EARLY
                ]
            batches = [early] if early else []


@given(drawn=of_each(lambda kind: logs(types=kind.projection.events, kind=kind)))
@stored
async def test_one_pass_counts_every_event_once(
    projector: Projector, database: Database, kind: Kind, drawn: dict[str, Any]
) -> None:
    """Applied or ignored, each fact of a log is one version of its entity's row, which stands at the last."""
    log = drawn[kind.projection.name]
    numbers = {str(event.entity_id): event.position.number for event in log}
    counts = {key: sum(str(event.entity_id) == key for event in log) for key in numbers}
    after = {key: msgspec.json.decode(row) for key, row in (await one_pass(projector, database, kind, log)).items()}
    assert {key: row["version"] for key, row in after.items()} == counts
    assert {key: row["last_applied_offset"] or row["last_applied_sequence"] for key, row in after.items()} == numbers


@given(drawn=of_each(lambda kind: logs(kind=kind)))
@stored
async def test_one_pass_counts_what_follows_from_a_trigger_in_its_place(
    projector: Projector, database: Database, kind: Kind, drawn: dict[str, Any]
) -> None:
    """A trigger is as many versions as its answer names events, and one when it names none."""
    log = drawn[kind.projection.name]
    domain = str(uuid4())
    versions = Counter[str]()
    for event in in_domain(log, domain):
        [result] = await projector.persist([event])
        followed = result.events or []
        versions[str(event.entity_id)] += max(1, len(followed))
        assert result.version == versions[str(event.entity_id)]
    after = {key: msgspec.json.decode(row) for key, row in (await rows(database, kind, domain)).items()}
    assert {key: row["version"] for key, row in after.items()} == versions


@given(drawn=of_each(lambda kind: reread_logs(kind=kind)), by_position=st.booleans())
@stored
async def test_law_1_a_log_read_with_rewinds_and_repeats_ends_in_the_rows_of_one_pass(
    projector: Projector, database: Database, kind: Kind, drawn: dict[str, Any], by_position: bool
) -> None:
    """However often a reader falls back, and however its batches are cut and folded, nothing in a row differs."""
    log, [batches] = drawn[kind.projection.name]
    domain = str(uuid4())
    for batch in batches:
        await projector.persist(in_domain(batch, domain), by_position=by_position)
    assert await rows(database, kind, domain) == await one_pass(projector, database, kind, log)


@given(drawn=of_each(lambda kind: reread_logs(kind=kind)))
@stored
async def test_law_1_holds_for_single_events_that_are_joined(
    projector: Projector, database: Database, kind: Kind, drawn: dict[str, Any]
) -> None:
    """Sent one by one and all at once, events are joined into transactions of any size, and the rows are the same."""
    log, [batches] = drawn[kind.projection.name]
    domain, writer = str(uuid4()), Writer(projector, joining=True)
    await asyncio.gather(*(writer.ask(event) for batch in batches for event in in_domain(batch, domain)))
    await writer.close()
    assert await rows(database, kind, domain) == await one_pass(projector, database, kind, log)


@given(drawn=of_each(lambda kind: shuffled_logs(linked=True, kind=kind)), by_position=st.booleans())
@stored
async def test_law_2_events_that_name_what_came_before_may_come_in_any_order(
    projector: Projector, database: Database, kind: Kind, drawn: dict[str, Any], by_position: bool
) -> None:
    """Sent in any permutation and batches, and again while they are early, they end in the rows of one pass."""
    log, batches = drawn[kind.projection.name]
    domain = str(uuid4())
    await until_done(projector, [in_domain(batch, domain) for batch in batches], by_position=by_position)
    assert await rows(database, kind, domain) == await one_pass(projector, database, kind, log)


@given(
    drawn=of_each(lambda kind: shuffled_logs(linked=False, types=[kind.whole], kind=kind)), by_position=st.booleans()
)
@stored
async def test_law_3_of_recorded_rows_the_one_of_the_highest_position_stays(
    projector: Projector, database: Database, kind: Kind, drawn: dict[str, Any], by_position: bool
) -> None:
    """In any permutation the last write wins, and only the version tells how many came before it."""
    log, batches = drawn[kind.projection.name]
    domain = str(uuid4())
    for batch in batches:
        await projector.persist(in_domain(batch, domain), by_position=by_position)
    ended, ordered = await rows(database, kind, domain), await one_pass(projector, database, kind, log)
    assert {key: without_version(row) for key, row in ended.items()} == {
        key: without_version(row) for key, row in ordered.items()
    }


@given(drawn=shuffled_logs(linked=False, types=[Recorded, Forgotten]), by_position=st.booleans())
@stored
async def test_law_3_holds_with_forgets_whose_times_rise_with_the_positions(
    projector: Projector, database: Database, drawn: tuple[list[Any], list[list[Any]]], by_position: bool
) -> None:
    """A forget at the highest position leaves a tombstone, and a recorded row after it is the entity begun anew.

    Unless it is permanent: what was before it is then the last that anybody hears.
    """
    log, batches = drawn
    rising = {event.event_id: _risen(event, second) for second, event in enumerate(log)}
    domain = str(uuid4())
    for batch in batches:
        events = in_domain([rising[event.event_id] for event in batch], domain)
        await projector.persist(events, by_position=by_position)
    ended = await rows(database, REGISTRATION_KIND, domain)
    ordered = await one_pass(projector, database, REGISTRATION_KIND, list(rising.values()))
    assert {key: without_version(row) for key, row in ended.items()} == {
        key: without_version(row) for key, row in ordered.items()
    }


def _risen(event: Any, second: int) -> Any:
    """The event at this second, and if it is a forget, one that is not for good."""
    data = ForgottenData() if isinstance(event, Forgotten) else event.data
    return replace(event, occurred_at=START + timedelta(seconds=second), data=data)


def without_version(row: str) -> dict[str, object]:
    """The row but for its version."""
    columns: dict[str, object] = msgspec.json.decode(row)
    return {name: value for name, value in columns.items() if name != "version"}


@given(drawn=of_each(lambda kind: reread_logs(readers=2, kind=kind)))
@stored
async def test_law_4_no_reader_sees_a_version_or_a_position_go_down(
    projector: Projector, database: Database, kind: Kind, drawn: dict[str, Any]
) -> None:
    """Readers that ask again and again while two writers read one log, each with its rewinds, see it only grow."""
    log, ways = drawn[kind.projection.name]
    domain = str(uuid4())
    entities = {event.entity_id for event in log}
    keys = [(entity, domain) for entity in entities]
    seen: list[dict[UUID, list[tuple[int, int]]]] = [{entity: [] for entity in entities} for _ in range(2)]
    done = asyncio.Event()

    async def read(connection: Connection) -> dict[UUID, tuple[int, int]]:
        found = await kind.store.get_entity_states(connection, keys)
        return {row.entity_id: (row.version, row.position.number) for row in found.values()}

    async def watch(sightings: dict[UUID, list[tuple[int, int]]]) -> None:
        last_time = False
        while not last_time:
            last_time = done.is_set()
            for entity, sighting in (await database.read(read)).items():
                sightings[entity].append(sighting)

    async def write(batches: Sequence[Sequence[EventBase]]) -> None:
        for batch in batches:
            await projector.persist(in_domain(batch, domain))

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for sightings in seen:
            group.create_task(watch(sightings))
        await asyncio.gather(*(write(batches) for batches in ways))
        done.set()
    last = {event.entity_id: event.position.number for event in log}
    for sightings in seen:
        for entity, sighted in sightings.items():
            assert [version for version, _ in sighted] == sorted(version for version, _ in sighted)
            assert [number for _, number in sighted] == sorted(number for _, number in sighted)
            assert sighted[-1][1] == last[entity]


# --- Two writers in two processes ----------------------------------------------------------------------------------

_start: Barrier


def join_writers(start: Barrier) -> None:
    """What a writer process does first."""
    global _start  # noqa: PLW0603 - a process pool hands things to its processes in this way alone
    _start = start


@pytest.fixture(scope="module")
def writers() -> Iterator[ProcessPoolExecutor]:
    """Two processes, in which nothing of this one is."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=join_writers, initargs=(context.Barrier(2),)) as pool:
        yield pool


def write_in_a_process(url: str, name: str, batches: list[list[bytes]]) -> int:
    """Take batches in when the other process does, and what is early again; return how many events moved a row."""

    async def write() -> int:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=10))
        projector = Projector(database, Timing(), store=KINDS[name].store)
        pending = [[KINDS[name].read(line) for line in batch] for batch in batches]
        moved = 0
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(_start.wait, PATIENCE)
                while pending:
                    early: list[EventBase] = []
                    for batch in pending:
                        results = await projector.persist(batch)
                        outcomes = [result.outcome for result in results]
                        moved += sum(outcome in {Outcome.APPLIED, Outcome.IGNORED} for outcome in outcomes)
                        early += [
                            event for event, outcome in zip(batch, outcomes, strict=True) if outcome is Outcome.EARLY
                        ]
                    pending = [early] if early else []
        finally:
            await database.close()
        return moved

    return asyncio.run(write())


def slices(random: Random, log: Sequence[EventBase]) -> list[list[EventBase]]:
    """Most of the log in overlapping slices, shuffled within and among each other, and some of them twice."""
    cut = [list(log[start : start + 15]) for start in range(0, len(log), 10) if random.random() < 0.8]
    cut += random.sample(cut, len(cut) // 3)
    for part in cut:
        random.shuffle(part)
    random.shuffle(cut)
    return cut


@pytest.mark.parametrize("seed", range(5))
async def test_two_writers_in_two_processes_end_in_the_rows_of_one_pass(
    projector: Projector, database: Database, kind: Kind, database_url: str, writers: ProcessPoolExecutor, seed: int
) -> None:
    """Overlapping, shuffled, repeated slices of one log, sent by both at once, give the rows of one ordered pass."""
    random = Random(seed)
    log = seeded_log(random, entities=8, length=120, linked=True, kind=kind)
    domain = str(uuid4())
    sent = in_domain(log, domain)
    shares = [slices(random, sent), slices(random, sent)]
    covered = {event.event_id for share in shares for part in share for event in part}
    shares[0].append([event for event in sent if event.event_id not in covered])
    lines = [[[msgspec.json.encode(event) for event in part] for part in share] for share in shares]
    loop, name = asyncio.get_running_loop(), kind.projection.name
    async with asyncio.timeout(2 * PATIENCE):
        moved = await asyncio.gather(
            *(loop.run_in_executor(writers, write_in_a_process, database_url, name, share) for share in lines)
        )
    assert sum(moved) == len(log)
    assert await rows(database, kind, domain) == await one_pass(projector, database, kind, log)
