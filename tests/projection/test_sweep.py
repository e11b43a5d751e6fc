"""Passed deadlines become events: each once, by whichever sweep, and none of a node that may still be heard of."""

import asyncio
import itertools
import logging
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace

from app.domain.decider import Deadline, expiry_id
from app.domain.registration import Registration, Timing
from app.domain.results import Outcome
from app.domain.states import RegistrationState
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.projection.sweep import Sweep
from app.settings import Settings
from app.store.database import Connection, Database
from app.store.overdue import now
from app.store.registrations import REGISTRATIONS
from app.wire.envelopes import Envelope
from tests.conftest import application
from tests.making import Json, event, node
from tests.processes import COMMAND, PATIENCE, environment

TOPIC = "registration-events"
CONSUL = {"consul.register": "consul", "consul.deregister": "consul"}
POLL = 0.02  # seconds
GATE = 7  # an advisory lock, for who is to be held up
BOTH = pytest.mark.parametrize("deadline", Deadline)
STATES = {
    Deadline.ACK: RegistrationState.ACK_TIMED_OUT,
    Deadline.LIVENESS: RegistrationState.LIVENESS_EXPIRED,
}
SPENT = {Deadline.ACK: ["node.introspected"], Deadline.LIVENESS: ["node.introspected", "node.registration_acked"]}


def ago(seconds: float) -> str:
    """A time this many seconds before now: the sweep goes by the clock, and a run of all tests takes minutes."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


async def register(
    projector: Projector,
    nodes: Sequence[UUID],
    deadline: Deadline,
    *,
    domain: str = "registration",
    since: float = 3600,
    partition: str | None = None,
) -> None:
    """Have these nodes wait for a deadline: they came this many seconds ago, and none was heard of after that."""
    for number, type_ in enumerate(SPENT[deadline], start=1):
        fields: Json = {"domain": domain, "occurred_at": ago(since), "correlation_id": str(node(99))}
        if partition is not None:
            fields["position"] = {"partition": partition, "offset": number}
        await projector.persist([event(type_, number, entity_id=each, **fields) for each in nodes])


async def read(database: Database, entity_id: UUID, domain: str = "registration") -> Registration:
    """A row."""
    found = await database.read(lambda connection: REGISTRATIONS.get_entity_state(connection, entity_id, domain))
    assert found is not None
    return found


async def sent(database: Database) -> list[tuple[str, Envelope]]:
    """What is in the outbox, oldest first: destinations and envelopes."""
    query = "SELECT destination, envelope FROM outbox ORDER BY id"
    rows = await database.read(lambda connection: connection.fetch(query))
    return [
        (destination, Envelope.from_json(line.encode())) for destination, lines in rows for line in lines.split("\n")
    ]


async def expired(database: Database) -> int:
    """How many rows' time-outs are out."""
    query = (
        "SELECT count(*) FROM registration_projections"
        " WHERE ack_timeout_emitted_at IS NOT NULL OR liveness_timeout_emitted_at IS NOT NULL"
    )
    return int(await database.read(lambda connection: connection.fetchval(query)))


async def execute(database: Database, *statements: str) -> None:
    """Run some SQL."""

    async def work(connection: Connection) -> None:
        for each in statements:
            await connection.execute(each)

    await database.write_alone(work)


async def walk(sweep: Sweep, deadline: Deadline) -> int:
    """Sweep page by page to the end, and return how many pages that took."""
    after, pages = await sweep.page(deadline), 1
    while after is not None:
        after, pages = await sweep.page(deadline, after), pages + 1
    return pages


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        for _ in itertools.count():
            if await condition():
                return
            await asyncio.sleep(POLL)


async def until_expired(database: Database, count: int) -> None:
    """Wait until the timeouts of this many rows were emitted."""

    async def are_expired() -> bool:
        return await expired(database) >= count

    await until(are_expired)


@asynccontextmanager
async def running(sweep: Sweep) -> AsyncIterator[None]:
    """A running sweep that ends by itself when it is stopped."""
    stop = asyncio.Event()
    task = asyncio.create_task(sweep.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
async def scans(database_url: str) -> AsyncIterator[Database]:
    """The same database as a sweep has it."""
    database = Database(database_url, pool_size=4, statement_timeout=timedelta(seconds=5), scans=True)
    yield database
    await database.close()


@pytest.fixture
def sweep(database: Database, scans: Database) -> Sweep:
    """A sweep that has a bus and a Consul to tell."""
    return Sweep(database, scans, EntryBuilder(TOPIC, CONSUL))


@BOTH
async def test_a_passed_deadline_becomes_an_event(
    sweep: Sweep, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """State, marker, time and version change, by the database's clock, and nothing else does."""
    await register(projector, [node(1)], deadline)
    before = await read(database, node(1))
    earliest = await database.read(now)
    assert await sweep.page(deadline) is None
    latest = await database.read(now)
    after = await read(database, node(1))
    assert earliest < after.updated_at < latest
    marker = f"{deadline}_timeout_emitted_at"
    changed: Json = {"current_state": STATES[deadline], marker: after.updated_at, "updated_at": after.updated_at}
    assert after == replace(before, version=before.version + 1, **changed)


@BOTH
async def test_what_follows_goes_out(
    sweep: Sweep, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """One event for the bus, with the id that any sweep would give it and the version it leads to; and for Consul."""
    await register(projector, [node(1)], deadline)
    before = await read(database, node(1))
    await sweep.page(deadline)
    [(to_bus, told), (to_consul, intent)] = await sent(database)
    assert (to_bus, to_consul) == (f"topic:{TOPIC}", "effect:consul")
    assert (told.id, told.type) == (expiry_id(before, deadline), f"registration.{STATES[deadline]}")
    assert (told.subject, told.sequence) == (node(1), before.version + 1)
    assert told.time == (await read(database, node(1))).updated_at
    assert intent.type == "consul.deregister"


@BOTH
async def test_the_sources_next_event_still_fits(
    sweep: Sweep, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """An expired node can register again with the next event of its source."""
    await register(projector, [node(1)], deadline)
    await sweep.page(deadline)
    stood_at = (await read(database, node(1))).last_applied_sequence
    assert stood_at is not None
    fields: Json = {"position": {"sequence": stood_at + 1, "previous": stood_at}}
    [result] = await projector.persist([event("node.introspected", stood_at + 1, entity_id=node(1), **fields)])
    assert (result.outcome, result.current_state) == (Outcome.APPLIED, RegistrationState.AWAITING_ACK)


@BOTH
async def test_what_is_not_overdue_is_left_alone(
    sweep: Sweep, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """No deadline that is still to come, none that counts no more, and none whose time-out is out."""
    await register(projector, [node(1)], deadline, since=-3600)
    await register(projector, [node(2)], deadline)
    await projector.persist([event("node.deregistered", 9, entity_id=node(2))])
    await register(projector, [node(3)], deadline)
    await walk(sweep, deadline)
    before = [await read(database, node(number)) for number in (1, 2, 3)]
    messages = await sent(database)
    await walk(sweep, deadline)
    assert [await read(database, node(number)) for number in (1, 2, 3)] == before
    assert await sent(database) == messages


@BOTH
async def test_pages_lead_through_all_domains(
    scans: Database, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """Page by page, every domain is swept to its end, whatever its name."""
    domains = ["", "A", "a", "ä", "registration", "zone-1", "zone 1"]
    for domain in domains[1:]:
        await register(projector, [node(number) for number in range(5)], deadline, domain=domain)
    count = 5 * len(domains[1:])
    assert await walk(Sweep(database, scans, EntryBuilder(), page=4), deadline) == count // 4 + 1
    assert await expired(database) == count


WATERMARKS = {
    "none": (None, False),
    "of another partition": (("nodes-eu", 11, 0, 0), False),
    "nothing known": (("nodes-eu", 1, None, None), False),
    "a message before the deadline": (("nodes-eu", 1, 3580, None), False),
    "a message after the deadline": (("nodes-eu", 1, 100, None), True),
    "caught up before the deadline": (("nodes-eu", 1, None, 3580), False),
    "caught up after the deadline": (("nodes-eu", 1, None, 100), True),
    "caught up, after an old message": (("nodes-eu", 1, 3590, 100), True),
    "a late message, caught up long ago": (("nodes-eu", 1, 100, 3590), True),
}


@pytest.mark.parametrize(("watermark", "swept"), WATERMARKS.values(), ids=WATERMARKS)
@BOTH
async def test_a_partition_that_lags_protects_its_nodes(
    sweep: Sweep,
    projector: Projector,
    database: Database,
    deadline: Deadline,
    watermark: tuple[str, int, float | None, float | None] | None,
    swept: bool,
) -> None:
    """A node on a partition expires once the partition's watermark has passed the deadline, and not before."""
    await register(projector, [node(1)], deadline, partition="nodes-eu-1")
    if watermark is not None:
        topic, partition, *times = watermark
        at = ", ".join("NULL" if each is None else f"'{ago(each)}'" for each in times)
        columns = 'topic, partition, "offset", message_at, caught_up_at, updated_at, consumer'
        await execute(
            database, f"INSERT INTO watermarks ({columns}) VALUES ('{topic}', {partition}, 7, {at}, now(), 'me')"
        )
    await walk(sweep, deadline)
    assert await expired(database) == swept


async def mark(database: Database, partition: int, *, offset: int = 7, caught_up: float | None = 100) -> None:
    """A watermark of the topic `nodes-eu`, caught up so many seconds ago."""
    at = "NULL" if caught_up is None else f"'{ago(caught_up)}'"
    columns = 'topic, partition, "offset", caught_up_at, updated_at, consumer'
    await execute(
        database, f"INSERT INTO watermarks ({columns}) VALUES ('nodes-eu', {partition}, {offset}, {at}, now(), 'me')"
    )


@BOTH
async def test_a_partition_that_nobody_has_read_protects_its_topic(
    sweep: Sweep, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """A new partition may hold the heartbeats of any node of its topic: none expires until it was read once."""
    await register(projector, [node(1)], deadline, partition="nodes-eu-1")
    await mark(database, 1)
    await mark(database, 2, offset=-1, caught_up=None)
    await walk(sweep, deadline)
    assert await expired(database) == 0
    await execute(database, "UPDATE watermarks SET caught_up_at = now() WHERE partition = 2")
    await walk(sweep, deadline)
    assert await expired(database) == 1


@BOTH
async def test_where_nodes_follow_their_messages_each_partition_counts(
    scans: Database, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """With PQS_TRACKS=follow a node's messages may wait in any partition of its topic, so the slowest one counts."""
    await register(projector, [node(1)], deadline, partition="nodes-eu-1")
    await mark(database, 1)
    await mark(database, 2, caught_up=3590)
    await walk(Sweep(database, scans, EntryBuilder(), follow=True), deadline)
    assert await expired(database) == 0
    await walk(Sweep(database, scans, EntryBuilder(), follow=False), deadline)
    assert await expired(database) == 1


@BOTH
async def test_a_row_before_a_topic_does_not_expire(
    sweep: Sweep, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """A row that was moved before a topic's first message waits for that message."""
    await register(projector, [node(1)], deadline, partition="nodes-eu-*")
    await mark(database, 1)
    await walk(sweep, deadline)
    assert await expired(database) == 0


@BOTH
async def test_a_dead_letter_protects_its_node(
    sweep: Sweep, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """A node whose message could not be applied may be alive; what the relay could not send says nothing about it."""
    await register(projector, [node(1), node(2)], deadline)
    for number, source in ((1, "consumer"), (2, "relay")):
        await execute(
            database,
            "INSERT INTO dead_letters (source, topic, headers, error, entity_id)"
            f" VALUES ('{source}', 'nodes', '[]', 'conflict', '{node(number)}')",
        )
    await walk(sweep, deadline)
    assert await expired(database) == 1
    assert (await read(database, node(2))).current_state is STATES[deadline]
    await execute(database, "DELETE FROM dead_letters")
    await walk(sweep, deadline)
    assert await expired(database) == 2


@BOTH
async def test_nodes_that_are_protected_hold_nobody_up(
    scans: Database, projector: Projector, database: Database, deadline: Deadline
) -> None:
    """Behind many older deadlines that may not be swept, one that may is reached by the same walk."""
    await register(projector, [node(number) for number in range(10)], deadline, partition="nodes-1", since=7200)
    await register(projector, [node(10)], deadline)
    assert await walk(Sweep(database, scans, EntryBuilder(), page=2), deadline) == 6
    assert (await read(database, node(10))).current_state is STATES[deadline]
    assert await expired(database) == 1


async def test_a_row_at_work_is_not_waited_for(sweep: Sweep, projector: Projector, database: Database) -> None:
    """A row that another transaction has locked is left for the next walk; the others of its page are not."""
    await register(projector, [node(number) for number in range(5)], Deadline.ACK)

    async def meanwhile(connection: Connection) -> None:
        await REGISTRATIONS.get_entity_states(connection, [(node(0), "registration")], lock=True)
        await sweep.page(Deadline.ACK)

    await database.write(meanwhile)
    assert await expired(database) == 4
    await sweep.page(Deadline.ACK)
    assert await expired(database) == 5


@BOTH
async def test_a_row_that_cant_be_written_stops_nothing(
    sweep: Sweep,
    projector: Projector,
    database: Database,
    deadline: Deadline,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged once, with its entity, and skipped; the other rows of its page expire, now and later."""
    caplog.set_level(logging.ERROR, "app.projection.sweep")
    await register(projector, [node(number) for number in range(5)], deadline)
    await execute(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not this one''; END'",
        "CREATE TRIGGER refuse BEFORE UPDATE ON registration_projections FOR EACH ROW"
        f" WHEN (OLD.entity_id = '{node(3)}') EXECUTE FUNCTION refuse()",
    )
    await walk(sweep, deadline)
    assert await expired(database) == 4
    [record] = caplog.records
    assert str(node(3)) in record.getMessage()
    await register(projector, [node(number) for number in range(5, 8)], deadline)
    await walk(sweep, deadline)
    assert await expired(database) == 7
    assert caplog.records == [record]
    assert [envelope.type for _, envelope in await sent(database)].count("consul.deregister") == 7


async def test_sweeps_that_meet_share_the_work(projector: Projector, database: Database, scans: Database) -> None:
    """Four at the same rows in small pages: each deadline becomes one event, and each row one version more."""
    nodes = [node(number) for number in range(300)]
    for deadline, half in ((Deadline.ACK, nodes[:150]), (Deadline.LIVENESS, nodes[150:])):
        await register(projector, half, deadline)
    before = {each: (await read(database, each)).version for each in nodes}
    sweeps = [Sweep(database, scans, EntryBuilder(TOPIC), page=7) for _ in range(4)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(walk(each, deadline) for each in sweeps for deadline in Deadline))
        for deadline in Deadline:
            await walk(sweeps[0], deadline)
    messages = [envelope for _, envelope in await sent(database)]
    assert sorted((each.subject, each.sequence) for each in messages) == sorted(
        (each, version + 1) for each, version in before.items()
    )
    assert {each: (await read(database, each)).version for each in nodes} == {
        each: version + 1 for each, version in before.items()
    }


async def test_a_node_expires_or_is_heard_of_and_never_both(
    projector: Projector, database: Database, scans: Database
) -> None:
    """Heartbeats race sweeps: where one was applied the node lives and no event is out; else it was just too late."""
    nodes = [node(number) for number in range(400)]
    await register(projector, nodes, Deadline.LIVENESS)
    outcomes: dict[UUID, Outcome] = {}

    async def beat(some: Sequence[UUID]) -> None:
        for start in range(0, len(some), 5):
            batch = some[start : start + 5]
            beats = [event("node.heartbeat", 9, entity_id=each, occurred_at=ago(0)) for each in batch]
            outcomes.update({each.entity_id: each.outcome for each in await projector.persist(beats)})

    async with asyncio.timeout(PATIENCE):
        sweeps = (walk(Sweep(database, scans, EntryBuilder(TOPIC), page=size), Deadline.LIVENESS) for size in (3, 10))
        await asyncio.gather(beat(nodes[::-2]), beat(nodes[::2]), *sweeps)
    out = [envelope.subject for _, envelope in await sent(database)]
    assert len(out) == len(set(out))
    for each in nodes:
        row = await read(database, each)
        alive = row.current_state is RegistrationState.ACTIVE
        assert (outcomes[each] is Outcome.APPLIED) == alive
        assert (each in out) == (not alive)
        assert (row.liveness_timeout_emitted_at is None) == alive


@contextmanager
def sweep_processes(count: int, url: str, folder: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run this many `pqs sweep`, and stop them all at the end."""
    settings: Json = {"database_url": url, "bus": "memory", "topic_out": TOPIC, "statement_timeout": PATIENCE}
    processes = []
    for number in range(count):
        with (folder / f"sweep-{number}.log").open("wb") as log:
            command = [*COMMAND, "sweep"]
            processes.append(subprocess.Popen(command, env=environment(**settings), stdout=log, stderr=log))
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()
            each.wait(PATIENCE)


async def until_work_waits(database: Database, count: int) -> None:
    """Wait until this many sessions wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    async def waits() -> bool:
        return bool(await database.read(lambda connection: connection.fetchval(query)) == count)

    await until(waits)


async def test_each_deadline_becomes_one_event_though_a_sweep_is_killed(
    projector: Projector, database: Database, database_url: str, tmp_path: Path
) -> None:
    """Three processes, each in the middle of its pages when one is killed: nothing is left undone, or done twice."""
    nodes = [node(number) for number in range(3000)]
    for start in range(0, len(nodes), 1000):
        deadline = (Deadline.ACK, Deadline.LIVENESS)[start == 2000]
        await register(projector, nodes[start : start + 1000], deadline)
    await execute(
        database,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$",
        "CREATE TRIGGER wait AFTER UPDATE ON registration_projections EXECUTE FUNCTION wait()",
    )
    gate = await asyncpg.connect(database_url)
    await gate.execute(f"SELECT pg_advisory_lock({GATE})")
    with sweep_processes(3, database_url, tmp_path) as processes:
        await until_work_waits(database, 3 * len(Deadline))  # both of each have written a page, and not committed it
        processes[0].kill()
        processes[0].wait(PATIENCE)
        assert await expired(database) == 0
        await gate.close()
        await until_expired(database, len(nodes))
        for each in processes[1:]:
            each.send_signal(signal.SIGTERM)
        assert [each.wait(PATIENCE) for each in processes] == [-signal.SIGKILL, 0, 0]
    messages = [envelope for _, envelope in await sent(database)]
    assert sorted(each.subject for each in messages) == sorted(nodes)
    query = "SELECT DISTINCT current_state::text, version FROM registration_projections"
    found = await database.read(lambda connection: connection.fetch(query))
    assert {(state, version) for state, version in found} == {("ack_timed_out", 4), ("liveness_expired", 6)}
    assert {(each.type, each.sequence) for each in messages} == {
        ("registration.ack_timed_out", 4),
        ("registration.liveness_expired", 6),
    }


async def test_each_of_a_thousand_deadlines_a_second_becomes_one_event(
    projector: Projector, database: Database, database_url: str, tmp_path: Path
) -> None:
    """While 2,000 deadlines pass in two seconds, one process turns each into an event, once, and none too early."""
    nodes = [node(number) for number in range(2000)]
    timeout = Timing().ack_timeout
    with sweep_processes(1, database_url, tmp_path) as [process]:

        async def sweeps() -> bool:
            return "sweeping" in (tmp_path / "sweep-0.log").read_text()

        await until(sweeps)
        first = datetime.now(UTC) + timedelta(seconds=1)
        due = {each: first + timedelta(milliseconds=number) for number, each in enumerate(nodes)}
        await projector.persist(
            [
                event("node.introspected", 1, entity_id=each, occurred_at=(time - timeout).isoformat())
                for each, time in due.items()
            ]
        )
        await until_expired(database, len(nodes))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    messages = [envelope for _, envelope in await sent(database)]
    assert sorted(each.subject for each in messages) == sorted(nodes)
    assert all(due[each.subject] < each.time for each in messages)
    query = "SELECT DISTINCT current_state::text, version FROM registration_projections"
    found = await database.read(lambda connection: connection.fetch(query))
    assert [tuple(row) for row in found] == [("ack_timed_out", 4)]


async def test_a_sweep_outlives_its_connections(projector: Projector, database: Database, scans: Database) -> None:
    """When PostgreSQL ends its sessions, it goes on with new ones."""
    await register(projector, [node(1)], Deadline.ACK)
    async with running(Sweep(database, scans, EntryBuilder())):
        await until_expired(database, 1)
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
        await execute(database, query)
        await register(projector, [node(2)], Deadline.LIVENESS)
        await until_expired(database, 2)


async def test_a_sweep_that_is_told_to_stop_finishes_its_page(
    projector: Projector, database: Database, scans: Database
) -> None:
    """It returns by itself: the page under way is committed, and the next one is left for another sweep."""
    await register(projector, [node(number) for number in range(6)], Deadline.LIVENESS)
    stop = asyncio.Event()

    def told(_deadline: str, count: int, _late: float) -> None:
        if count:
            stop.set()

    await asyncio.wait_for(Sweep(database, scans, EntryBuilder(), told, page=2).run(stop), PATIENCE)
    assert await expired(database) == 2


async def test_a_sweep_that_rests_stops_at_once(database: Database, scans: Database) -> None:
    """With nothing to do, and told to stop before it starts or while it waits, it does not wait any longer."""
    stop = asyncio.Event()
    looks: list[str] = []
    sweep = Sweep(database, scans, EntryBuilder(), lambda deadline, *_: looks.append(deadline))
    task = asyncio.create_task(sweep.run(stop))
    while len(looks) < len(Deadline):  # noqa: ASYNC110 - the sweep tells no event
        await asyncio.sleep(POLL)
    stop.set()
    await asyncio.wait_for(task, PATIENCE)
    await asyncio.wait_for(sweep.run(stop), PATIENCE)
    assert sorted(looks) == sorted(Deadline)


async def test_a_relay_is_told(database: Database, scans: Database, projector: Projector) -> None:
    """What a sweep puts into the outbox is announced when it is there, and only then."""
    calls: list[str] = []
    entries = EntryBuilder(TOPIC)
    entries.on_commit = lambda: calls.append("committed")
    sweep = Sweep(database, scans, entries)
    await sweep.page(Deadline.ACK)
    assert calls == []
    await register(projector, [node(1)], Deadline.ACK)
    await sweep.page(Deadline.ACK)
    assert calls == ["committed"]


async def test_a_service_sweeps_when_it_is_told_to(settings: Settings, projector: Projector) -> None:
    """With PQS_SWEEP a deadline of a moment passes, the overdue list empties, and the metrics count it."""
    async with application(settings.model_copy(update={"sweep": True})) as client:
        sent = event("node.introspected", 1, occurred_at=(datetime.now(UTC) - timedelta(seconds=29.5)).isoformat())
        await projector.persist([sent])

        async def is_counted() -> bool:
            return 'pqs_swept_total{kind="ack"} 1.0' in (await client.get("/metrics")).text

        await until(is_counted)
        assert (await client.get(f"/v1/entities/{sent.entity_id}/state")).json()["current_state"] == "ack_timed_out"
        assert (await client.get("/v1/overdue/ack")).json()["items"] == []
        assert 'pqs_sweep_lag_seconds{kind="ack"}' in (await client.get("/metrics")).text


async def test_a_service_does_not_sweep_by_itself(
    settings: Settings, projector: Projector, database: Database
) -> None:
    """Off is the default: old logs can be read without everything in them expiring at once."""
    await register(projector, [node(1)], Deadline.ACK)
    async with application(settings) as client:
        assert not settings.sweep
        assert [each["entity_id"] for each in (await client.get("/v1/overdue/ack")).json()["items"]] == [str(node(1))]
        assert "pqs_swept_total{" not in (await client.get("/metrics")).text
    assert await expired(database) == 0
