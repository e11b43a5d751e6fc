"""Snapshots: the topic, folded by greater version, is the table."""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID, uuid4

import msgspec
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from app.domain.changes import Logging
from app.domain.events import DEFAULT_DOMAIN, ForgottenData, key_of
from app.domain.registration import Timing
from app.domain.states import RegistrationState
from app.feed.snapshot_messages import SnapshotMessages
from app.outbound.partitioner import partition_of
from app.projection.changes import ChangeLog
from app.projection.projector import Projector
from app.runtime.metrics import Metrics
from app.store import changes, snapshots
from app.store.database import Connection, Database
from tests.broker import PATIENCE, Broker, built_in_broker
from tests.making import WAY_TO_ACTIVE, Json, event, node
from tests.making import row as registration
from tests.processes import pqs, refusal
from tests.snapshotting import (
    Snapshot,
    compacted,
    folded,
    make_topic,
    publishing,
    publishing_process,
    read_snapshots,
    table,
    until_folded,
)

NODES = 30
POLL = 0.05  # seconds
KILLS, WRITING = 4, 8  # publishers that are killed, and seconds in which others write
OTHER = "other/domain"


@pytest.fixture
def snapshot_topic(kafka: Broker) -> str:
    """A new compacted topic with four partitions."""
    return make_topic(kafka, f"snapshots-{uuid4().hex}")


def projector_on(database: Database, logging: Logging = Logging.TRANSITIONS) -> Projector:
    """A projector that logs changes."""
    return Projector(database, Timing(), log=ChangeLog(logging))


async def live(projector: Projector, entity_id: UUID, *, first: int = 1, domain: str = DEFAULT_DOMAIN) -> None:
    """Bring a node to active, one transaction an event."""
    for sequence, type_ in enumerate(WAY_TO_ACTIVE, start=first):
        await projector.persist([event(type_, sequence, entity_id=entity_id, domain=domain)])


async def forget(projector: Projector, entity_id: UUID, sequence: int) -> None:
    """Forget a node."""
    data: Json = msgspec.to_builtins(ForgottenData())
    await projector.persist([event("registration.forgotten", sequence, entity_id=entity_id, data=data)])


def rising(messages: list[Snapshot]) -> bool:
    """Whether the versions of each key rise along its partition, or repeat."""
    last: dict[tuple[str, int], int] = {}
    for each in messages:
        if each.version < last.get((each.key, each.partition), 0):
            return False
        last[each.key, each.partition] = each.version
    return True


async def test_a_row_goes_out_as_the_api_gives_it(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str
) -> None:
    """Each change publishes the row, keyed by its entity and domain, and placed by its entity alone."""
    projector = projector_on(database)
    await live(projector, node(1))
    await live(projector, node(1), domain=OTHER)
    async with publishing(database_url, kafka.servers, snapshot_topic):
        await until_folded(kafka, snapshot_topic, database)
        await live(projector, node(2))
        messages = await until_folded(kafka, snapshot_topic, database)
    assert {each.key for each in messages} == {str(node(1)), f"{node(1)}/{OTHER}", str(node(2))}
    [place] = {each.partition for each in messages if each.key.startswith(str(node(1)))}
    assert place == next(each.partition for each in messages if each.key == str(node(1)))
    newest = (
        messages[-1]
        if messages[-1].key == str(node(2))
        else next(each for each in reversed(messages) if each.key == str(node(2)))
    )
    assert newest.version == msgspec.json.decode(newest.value or b"")["version"] == 5
    assert [newest.change] == await database.read(_newest_changes, node(2))
    assert all(each.change is None for each in messages if each.key != str(node(2))), "these came by the bootstrap"


async def _newest_changes(connection: Connection, entity_id: UUID) -> list[int]:
    return [await connection.fetchval("SELECT max(id) FROM changes WHERE entity_id = $1", entity_id)]


async def test_bursts_are_joined(kafka: Broker, snapshot_topic: str, database: Database, database_url: str) -> None:
    """Changes that wait together are one message: only the newest row of an entity counts."""
    async with publishing(database_url, kafka.servers, snapshot_topic):
        await until_folded(kafka, snapshot_topic, database)
    projector = projector_on(database)
    for sequence, type_ in enumerate(WAY_TO_ACTIVE, start=1):
        await projector.persist([event(type_, sequence, entity_id=node(each)) for each in range(NODES)])
    async with publishing(database_url, kafka.servers, snapshot_topic):
        messages = await until_folded(kafka, snapshot_topic, database)
    assert len(messages) == NODES
    assert {each.version for each in messages} == {5}


async def test_forgetting_publishes_a_tombstone_and_versions_go_on(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str
) -> None:
    """A forgotten node is a tombstone; registered anew, its version is greater than all before."""
    projector = projector_on(database)
    await live(projector, node(1))
    async with publishing(database_url, kafka.servers, snapshot_topic):
        await until_folded(kafka, snapshot_topic, database)
        await forget(projector, node(1), 6)
        messages = await until_folded(kafka, snapshot_topic, database)
        assert (messages[-1].value, messages[-1].version) == (None, 6)
        await live(projector, node(1), first=7)
        messages = await until_folded(kafka, snapshot_topic, database)
    assert rising(messages)
    assert messages[-1].version == 11
    assert folded(compacted(messages)) == await table(database)


async def test_an_expired_node_may_be_a_tombstone(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str
) -> None:
    """With PQS_SNAPSHOTS_DROP_EXPIRED an expired node is a tombstone, until it registers again."""
    projector = projector_on(database)
    await live(projector, node(1))
    await projector.persist([event("registration.liveness_expired", 6, entity_id=node(1))])
    async with publishing(database_url, kafka.servers, snapshot_topic, drop_expired=True):
        await until_message(kafka, snapshot_topic, 6)
        assert folded(read_snapshots(kafka, snapshot_topic)) == {}
        await projector.persist([event("registration.initiated", 7, entity_id=node(1))])
        await until_folded(kafka, snapshot_topic, database)


async def until_message(kafka: Broker, topic: str, version: int) -> None:
    """Wait until a message of this version is there."""
    async with asyncio.timeout(PATIENCE):
        while not any(each.version == version for each in await asyncio.to_thread(read_snapshots, kafka, topic)):  # noqa: ASYNC110
            await asyncio.sleep(POLL)


async def test_a_bootstrap_goes_on_where_it_was(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bootstrap that is broken off goes on behind the last page that arrived; one on request begins anew."""
    projector = projector_on(database)
    await projector.persist([event(WAY_TO_ACTIVE[0], 1, entity_id=node(each)) for each in range(NODES)])
    standing = await database.write(snapshots.take, snapshot_topic, "somebody", 60.0)
    assert standing is not None
    some, more = await database.read(snapshots.scan, standing.after, limit=20)
    assert more
    standing.begun = 1
    await database.write(snapshots.save, standing, "somebody", 60.0)
    standing.rows = len(some)
    standing.after = (some[-1].entity_id, some[-1].domain)
    standing.place = await database.read(changes.newest, 2**62)
    await database.write(snapshots.save, standing, "somebody", 60.0)
    await database.write(snapshots.release, snapshot_topic, "somebody")
    monkeypatch.setattr("app.feed.publisher.PAGE", 7)
    async with publishing(database_url, kafka.servers, snapshot_topic):
        await bootstrapped(database, snapshot_topic, NODES)
        assert len(read_snapshots(kafka, snapshot_topic)) == NODES - len(some), "the first rows came before"
        asked = await database.write(snapshots.request, snapshot_topic)
        assert (asked.bootstrapping, asked.at_work, asked.requested) == (True, True, 2)
        await bootstrapped(database, snapshot_topic, NODES)
    assert len(await until_folded(kafka, snapshot_topic, database)) == 2 * NODES - len(some)


async def bootstrapped(database: Database, topic: str, rows: int) -> None:
    """Wait until a bootstrap is complete, and has published so many rows."""
    async with asyncio.timeout(PATIENCE):
        while (found := await database.read(snapshots.progress, topic)) is None or found.bootstrapping:  # noqa: ASYNC110
            await asyncio.sleep(POLL)
    assert found.rows == rows
    assert found.begun_at is not None
    assert found.finished_at is not None
    assert found.finished_at >= found.begun_at


async def test_where_the_log_has_expired_all_rows_go_out_again(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str
) -> None:
    """A publisher that was away for longer than changes are kept publishes all rows, tombstones included."""
    projector = projector_on(database)
    await live(projector, node(1))
    await live(projector, node(2))
    async with publishing(database_url, kafka.servers, snapshot_topic):
        await until_folded(kafka, snapshot_topic, database)
    await forget(projector, node(1), 6)
    await database.write(_expire)
    async with publishing(database_url, kafka.servers, snapshot_topic):
        messages = await until_folded(kafka, snapshot_topic, database)
    assert list(folded(messages)) == [str(node(2))]


async def _expire(connection: Connection) -> None:
    """Remove all changes, as retention does."""
    await connection.execute(
        "INSERT INTO changes_floor (slice, id, mark, changed_at)"
        " SELECT slice, id, mark, changed_at FROM changes ORDER BY id DESC LIMIT 1"
    )
    await connection.execute("DELETE FROM changes")


async def test_one_of_two_publishers_is_at_work(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str
) -> None:
    """Two publishers share a topic without repeats; when one stops, the other takes over at once."""
    projector, one, other = projector_on(database), Metrics(), Metrics()
    async with publishing(database_url, kafka.servers, snapshot_topic, other):
        async with publishing(database_url, kafka.servers, snapshot_topic, one):
            await live(projector, node(1))
            await until_folded(kafka, snapshot_topic, database)
        await live(projector, node(2))
        messages = await until_folded(kafka, snapshot_topic, database)
        at_work = [b"pqs_snapshots_publishers 1.0" in each.text() for each in (one, other)]
        assert at_work == [False, True]
    assert rising(messages)
    assert len(messages) <= 10


async def test_kafka_may_be_away(database: Database, database_url: str) -> None:
    """While Kafka is away snapshots wait, which the publisher says; then the newest rows go out."""
    projector = projector_on(database)
    with built_in_broker() as broker:
        topic = make_topic(broker, "snapshots")
        async with publishing(database_url, broker.servers, topic) as publisher:
            await live(projector, node(1))
            await until_folded(broker, topic, database)
            broker.go_down()
            await live(projector, node(2))
            async with asyncio.timeout(PATIENCE):
                while publisher.trouble() is None:  # noqa: ASYNC110 - it changes in the loop
                    await asyncio.sleep(POLL)
            broker.come_up()
            messages = await until_folded(broker, topic, database)
            async with asyncio.timeout(PATIENCE):
                while publisher.trouble() is not None:  # noqa: ASYNC110 - it changes in the loop
                    await asyncio.sleep(POLL)
    assert rising(messages)


def test_a_row_leaves_a_tombstone_where_it_was() -> None:
    """In a topic with more partitions a row leaves a tombstone of an older version where fewer had placed it."""
    row = registration(RegistrationState.ACTIVE)
    key = key_of(row.entity_id, row.domain)
    placed = {number: partition_of(str(row.entity_id).encode(), number) for number in (4, 9)}
    assert placed[4] != placed[9]
    [now, left] = SnapshotMessages(9, before=[4]).of({key: row}, {key: 77})
    assert (now.partition, now.headers) == (placed[9], [("version", b"21"), ("change", b"77")])
    assert (left.key, left.value, left.partition, left.headers) == (now.key, None, placed[4], [("version", b"20")])
    assert len(SnapshotMessages(9, before=[9]).of({key: row}, {})) == 1


needs_kafka = pytest.mark.skipif(
    "TEST_KAFKA" not in os.environ, reason="no real Kafka (kafka/run starts one): the built-in broker cannot do this"
)


@needs_kafka
async def test_a_topic_that_is_not_compacted_is_refused(kafka: Broker, database_url: str) -> None:
    """`pqs snapshots` ends with one line that names a topic that would lose rows, or that is not there."""
    topic = make_topic(kafka, f"plain-{uuid4().hex}", policy="delete")
    settings = {"database_url": database_url, "kafka": kafka.servers}
    said = refusal(await asyncio.to_thread(pqs_snapshots, topic, settings))
    assert said.startswith(f"pqs: PQS_TOPIC_SNAPSHOTS: the topic {topic} is not compacted (cleanup.policy is delete)")
    said = refusal(await asyncio.to_thread(pqs_snapshots, f"{topic}-none", settings))
    assert said.startswith(f"pqs: PQS_TOPIC_SNAPSHOTS: there is no topic {topic}-none;")
    await asyncio.sleep(1)  # a broker would make it meanwhile
    assert (
        f"{topic}-none" not in AdminClient({"bootstrap.servers": kafka.servers}).list_topics(timeout=PATIENCE).topics
    )


def pqs_snapshots(topic: str, settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run `pqs snapshots` to its end, without what it prints when it begins."""
    run = pqs("snapshots", topic_snapshots=topic, **settings)
    run.stdout = run.stdout.removeprefix(f"publishing to {topic}\n")
    return run


@needs_kafka
async def test_a_topic_may_grow_and_may_be_created_again(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more partitions, and in a topic that is new under its old name, the topic is the table again."""
    monkeypatch.setattr("app.feed.publisher.LOOK", 0.2)
    projector = projector_on(database)
    await projector.persist([event(WAY_TO_ACTIVE[0], 1, entity_id=node(each)) for each in range(NODES)])
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    async with publishing(database_url, kafka.servers, snapshot_topic):
        await until_folded(kafka, snapshot_topic, database)
        [grown] = admin.create_partitions([NewPartitions(snapshot_topic, 9)]).values()
        await asyncio.to_thread(grown.result, PATIENCE)
        await until_partitions(database, snapshot_topic, 9)
        messages = await until_folded(kafka, snapshot_topic, database)
        left = [each for each in compacted(messages) if each.value is not None]
        assert len({each.key for each in left}) == len(left) == NODES, "each row lies in one partition"
        await forget(projector, node(0), 2)
        await until_folded(kafka, snapshot_topic, database)
        [removed] = admin.delete_topics([snapshot_topic]).values()
        await asyncio.to_thread(removed.result, PATIENCE)
        await asyncio.sleep(1)
        make_topic(kafka, snapshot_topic, 2)
        await until_partitions(database, snapshot_topic, 2)
        await until_folded(kafka, snapshot_topic, database)


async def until_partitions(database: Database, topic: str, partitions: int) -> None:
    """Wait until all rows are published to a topic with so many partitions."""
    query = "SELECT partitions = $2 AND begun = finished FROM snapshot_topics WHERE topic = $1"
    async with asyncio.timeout(2 * PATIENCE):
        while not await database.read(lambda connection: connection.fetchval(query, topic, partitions)):  # noqa: ASYNC110
            await asyncio.sleep(POLL)


async def test_waiting_for_commits_is_not_a_slow_statement(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection on which a publisher hears of commits may be held for as long as it likes."""
    await live(projector_on(database), node(1))
    async with publishing(database_url, kafka.servers, snapshot_topic, Metrics(slow=0.5)):
        await until_folded(kafka, snapshot_topic, database)
        await asyncio.sleep(1)
    slow = [record.getMessage() for record in caplog.records if record.getMessage().startswith("slow")]
    assert [line for line in slow if "hear" in line] == []


@contextmanager
def writing(url: str, seconds: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Two processes that write: with locks and without, rolled back or held open at times."""
    commands = [[sys.executable, "-m", "tests.feed.writing", url, str(seed), str(seconds)] for seed in (1, 2)]
    writers = [subprocess.Popen(each, stdin=subprocess.DEVNULL) for each in commands]
    try:
        yield writers
    finally:
        for each in writers:
            each.kill()
            each.wait()


async def test_the_topic_is_the_table_however_publishers_die(
    kafka: Broker, snapshot_topic: str, database: Database, database_url: str
) -> None:
    """With writers at work, two publishers that are killed and replaced, and forgets, the topic is the table."""
    projector, chance = projector_on(database), random.Random(7)
    arguments = (database_url, kafka.servers, snapshot_topic)
    with writing(database_url, WRITING) as writers, ExitStack() as stack:
        running = [stack.enter_context(publishing_process(*arguments)) for _ in range(2)]
        for number in range(KILLS):
            await live(projector, node(1000 + number))
            await asyncio.sleep(1.5)
            await forget(projector, node(1000 + number), 6)
            running.pop(chance.randrange(2)).kill()
            running.append(stack.enter_context(publishing_process(*arguments)))
            if number % 2:
                await live(projector, node(1000 + number), first=7)
        for each in writers:
            await asyncio.to_thread(each.wait, PATIENCE)
        messages = await until_folded(kafka, snapshot_topic, database)
    assert rising(messages)
    assert folded(compacted(messages)) == await table(database)
