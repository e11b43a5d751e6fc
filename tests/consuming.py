"""Consumers for tests: in this process, and as processes of their own, on a Kafka that lets go of the dead soon."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from itertools import repeat
from typing import Any

import asyncpg
import msgspec
from confluent_kafka import Producer

from app.concurrency.breaker import CircuitBreaker
from app.domain.registration import Timing
from app.inbound.consumer import Consumer
from app.inbound.membership import MAX_BATCH
from app.projection.clock import DatabaseClock
from app.projection.projector import Projector
from app.store.database import Database
from tests.broker import PATIENCE, Broker
from tests.making import Json
from tests.processes import COMMAND, environment

# A real Kafka takes no session that is shorter than six seconds.
SESSION = 6000 if "TEST_KAFKA" in os.environ else 1500  # milliseconds
OPTIONS: Mapping[str, str | int] = {
    "session.timeout.ms": SESSION,
    "heartbeat.interval.ms": 300,
    "topic.metadata.refresh.interval.ms": 500,
    "reconnect.backoff.max.ms": 500,
}
ROWS = "SELECT * FROM registration_projections ORDER BY entity_id, domain"
WATERMARKS = 'SELECT partition, "offset" FROM watermarks WHERE "offset" >= 0 ORDER BY topic, partition'
POLL = 0.02  # seconds
NOW = 0  # what the client takes for the time of the call


def consumer_on(
    database: Database,
    servers: str,
    topic: str,
    group: str,
    *,
    batch: int = MAX_BATCH,
    projector: Projector | None = None,
    options: Mapping[str, str | int] = OPTIONS,
    **more: Any,
) -> Consumer:
    """A consumer of one topic."""
    return Consumer(
        database,
        projector or Projector(database, Timing()),
        DatabaseClock(database, timedelta(minutes=5)),
        servers=servers,
        topics=[topic],
        group=group,
        options=options,
        batch=batch,
        **more,
    )


@asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[None]:
    """A consumer that reads while this lasts."""
    stop = asyncio.Event()
    reading = asyncio.create_task(consumer.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE):
            await reading


def patient_database(url: str) -> Database:
    """A database that is asked again soon after it did not answer, as `pqs consume` has it."""
    breaker = CircuitBreaker(open_for=timedelta(seconds=0.1))
    return Database(url, pool_size=2, statement_timeout=timedelta(seconds=5), breaker=breaker)


def produce(
    broker: Broker,
    topic: str,
    values: Sequence[Json | bytes | None],
    *,
    partition: int | None = None,
    headers: Mapping[str, bytes] | None = None,
    timestamps: Iterable[int] | None = None,
    **more: Any,
) -> None:
    """Write messages, by default to the partition of their entity and at this time; `timestamps` are milliseconds."""
    failed: list[object] = []
    producer = Producer({"bootstrap.servers": broker.servers, "partitioner": "murmur2_random", "log_level": 0})
    for value, timestamp in zip(values, timestamps or repeat(NOW), strict=timestamps is not None):
        key = str(value.get("entity_id")).encode() if isinstance(value, dict) else b"key"
        encoded = msgspec.json.encode(value) if isinstance(value, dict) else value
        place: Json = {} if partition is None else {"partition": partition}
        producer.produce(
            topic,
            encoded,
            key,
            headers=dict(headers or {}),
            on_delivery=lambda error, _: failed.append(error) if error else None,
            **place,
            timestamp=timestamp,
            **more,
        )
        producer.poll(0)
    assert producer.flush(PATIENCE) == 0
    assert failed == []


async def until(url: str, query: str, expected: object) -> None:
    """Wait until a query of one value gives what is expected."""
    connection = await asyncpg.connect(url)
    found: object = None
    try:
        async with asyncio.timeout(PATIENCE):
            while (found := await connection.fetchval(query)) != expected:  # noqa: ASYNC110 - the change is another process's
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise AssertionError(f"{query}: {found} in place of {expected}") from None
    finally:
        await connection.close()


async def rows(url: str, query: str = ROWS) -> list[tuple[object, ...]]:
    """What a query gives."""
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def taken(count: int) -> tuple[str, int]:
    """A query for how many messages are taken in, and that it is this many: `until(url, *taken(5))`."""
    return 'SELECT coalesce(sum("offset" + 1), 0)::bigint FROM watermarks', count


@contextmanager
def process(
    url: str, servers: str, topic: str, group: str, *, batch: int = MAX_BATCH
) -> Iterator["subprocess.Popen[bytes]"]:
    """A consumer as a process of its own; killed at the end."""
    command = [sys.executable, "-m", "tests.consuming", url, servers, topic, group, str(batch)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def command(*arguments: str, **settings: object) -> Iterator["subprocess.Popen[bytes]"]:
    """`pqs` as a process of its own; killed at the end."""
    with subprocess.Popen([*COMMAND, *arguments], env=environment(**settings), stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


async def _main(url: str, servers: str, topic: str, group: str, batch: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    database = patient_database(url)
    try:
        await consumer_on(database, servers, topic, group, batch=int(batch)).run(stop)
    finally:
        await database.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:6]))
