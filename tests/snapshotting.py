"""Snapshots for tests: publishers in this process and in others, and the topic as a reader folds it."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import NamedTuple, cast

import msgspec
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.domain.events import DEFAULT_DOMAIN
from app.domain.registration import Registration
from app.feed.publisher import PUBLISHER_CONNECTIONS, SnapshotPublisher
from app.outbound.buses import kafka_bus
from app.outbound.compacted import CompactedTopic
from app.runtime.metrics import Metrics
from app.settings import read_settings
from app.store.database import Connection, Database
from app.store.registrations import REGISTRATIONS
from tests.broker import PATIENCE, Broker, RealBroker

LEASE, DELIVERY = 2.0, 0.9  # seconds: so that another publisher soon takes over
POLL = 0.05  # seconds


def make_topic(broker: Broker, name: str, partitions: int = 4, policy: str = "compact") -> str:
    """Create a topic with this policy, which the built-in broker has none of."""
    if isinstance(broker, RealBroker):
        admin = AdminClient({"bootstrap.servers": broker.servers})
        [made] = admin.create_topics([NewTopic(name, partitions, 1, config={"cleanup.policy": policy})]).values()
        made.result(PATIENCE)
    else:
        broker.create_topic(name, partitions)
    return name


class Snapshot(NamedTuple):
    """A message of the topic."""

    key: str
    version: int
    change: int | None
    value: bytes | None
    partition: int


def read_snapshots(broker: Broker, topic: str) -> list[Snapshot]:
    """All messages of a topic, each partition in order."""
    client = Client(
        {"bootstrap.servers": broker.servers, "group.id": "tests", "enable.auto.commit": False, "log_level": 0}
    )
    try:
        partitions = client.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
        places = [TopicPartition(topic, each, 0) for each in partitions]
        count = sum(client.get_watermark_offsets(place, timeout=PATIENCE)[1] for place in places)
        client.assign(places)
        found: list[Snapshot] = []
        while len(found) < count:
            some = client.consume(count - len(found), timeout=PATIENCE)
            assert some, f"{len(found)} of {count} messages came"
            for each in some:
                assert each.error() is None, each.error()
                headers = dict(each.headers() or [])
                change = headers.get("change")
                found.append(
                    Snapshot(
                        cast("bytes", each.key()).decode(),
                        int(headers["version"] or 0),
                        None if change is None else int(change),
                        each.value(),
                        each.partition() or 0,
                    )
                )
        return found
    finally:
        client.close()


def folded(messages: list[Snapshot]) -> dict[str, bytes | None]:
    """The rows that a reader has who keeps the greater version, in any order of partitions; gone ones are left out.

    Where two messages have one version, they say the same.
    """
    newest: dict[str, Snapshot] = {}
    for each in messages:
        known = newest.get(each.key)
        if known is None or each.version > known.version:
            newest[each.key] = each
    return {key: each.value for key, each in newest.items() if each.value is not None}


def compacted(messages: list[Snapshot]) -> list[Snapshot]:
    """What is left of a topic after its compaction: the last message of each key in each partition."""
    return list({(each.key, each.partition): each for each in messages}.values())


async def table(database: Database) -> dict[str, bytes]:
    """The rows as the API gives them, by their keys in the topic."""
    rows: dict[str, bytes] = {}
    for row in await database.read(_rows):
        key = str(row.entity_id) if row.domain == DEFAULT_DOMAIN else f"{row.entity_id}/{row.domain}"
        if row.forgotten_at is None:
            rows[key] = msgspec.json.encode(row)
    return rows


async def _rows(connection: Connection) -> list[Registration]:
    names = [tuple(each) for each in await connection.fetch("SELECT entity_id, domain FROM registration_projections")]
    return list((await REGISTRATIONS.get_entity_states(connection, names)).values())


def publisher_on(
    database: Database, servers: str, topic: str, metrics: Metrics | None = None, *, drop_expired: bool = False
) -> tuple[SnapshotPublisher, CompactedTopic]:
    """A publisher with a short lease. Its bus is closed with the loop."""
    settings = read_settings({"kafka": servers, "topic_snapshots": topic})
    bus = kafka_bus(settings, delivery_timeout=timedelta(seconds=DELIVERY), creates_topics=False)
    place = CompactedTopic(topic, settings, bus)
    publisher = SnapshotPublisher(
        database, place, (metrics or Metrics()).snapshots, drop_expired=drop_expired, lease=LEASE, delivery=DELIVERY
    )
    return publisher, place


def snapshots_database(url: str, observer: Metrics | None = None) -> Database:
    """The database of a publisher."""
    return Database(
        url,
        pool_size=PUBLISHER_CONNECTIONS,
        statement_timeout=timedelta(seconds=5),
        name="snapshots",
        observer=observer,
    )


@asynccontextmanager
async def publishing(
    url: str, servers: str, topic: str, metrics: Metrics | None = None, *, drop_expired: bool = False
) -> AsyncIterator[SnapshotPublisher]:
    """A publisher at work within this context."""
    database = snapshots_database(url, metrics)
    publisher, place = publisher_on(database, servers, topic, metrics, drop_expired=drop_expired)
    stop = asyncio.Event()
    running = asyncio.create_task(publisher.run(stop))
    try:
        yield publisher
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE):
            await running
        await place.close()
        await database.close()


@contextmanager
def publishing_process(url: str, servers: str, topic: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A publisher in a process of its own, killed at the end."""
    command = [sys.executable, "-m", "tests.snapshotting", url, servers, topic]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.kill()


async def until_folded(
    broker: Broker, topic: str, database: Database, *, patience: float = 2 * PATIENCE
) -> list[Snapshot]:
    """Wait until the topic, folded, equals the table, and return its messages."""
    found: list[Snapshot] = []
    expected: dict[str, bytes] = {}
    try:
        async with asyncio.timeout(patience):
            while True:
                expected = await table(database)
                found = await asyncio.to_thread(read_snapshots, broker, topic)
                if folded(found) == expected:
                    return found
                await asyncio.sleep(POLL)
    except TimeoutError:
        rows = folded(found)
        differs = {key for key in expected.keys() | rows.keys() if expected.get(key) != rows.get(key)}
        raise AssertionError(f"{len(differs)} of {len(expected)} rows differ: {sorted(differs)[:3]}") from None


async def _main(url: str, servers: str, topic: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with publishing(url, servers, topic):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:4]))
