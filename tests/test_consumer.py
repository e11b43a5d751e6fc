"""Kafka in: what a topic holds is in the rows, once and in order, whatever happens to those who read it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition

from app.consumer import consuming
from app.errors import StartError
from app.settings import read_settings
from app.store.database import Database
from tests.broker import PATIENCE, Broker, built_in_broker
from tests.conftest import new_database, on_server
from tests.consuming import (
    WATERMARKS,
    command,
    consumer_on,
    patient_database,
    process,
    produce,
    rows,
    running,
    taken,
    until,
)
from tests.making import NODE, Json, event_json, life, node
from tests.processes import pqs, refusal

NODES = 40
EVENTS = 5 * NODES
ALL = taken(EVENTS)
DEAD = 'SELECT partition, "offset", key, value, headers, error FROM dead_letters ORDER BY partition, "offset"'


def lives(nodes: int = NODES) -> list[Json]:
    """The events of some nodes, one step of each after the other."""
    return [event for step in zip(*(life(node(number)) for number in range(nodes)), strict=True) for event in step]


@asynccontextmanager
async def reading(kafka: Broker, topic: str, url: str, group: str | None = None) -> AsyncIterator[None]:
    """A consumer that reads a topic into a database while this lasts."""
    database = patient_database(url)
    try:
        async with running(consumer_on(database, kafka.servers, topic, group or uuid4().hex)):
            yield
    finally:
        await database.close()


async def clean_read(kafka: Broker, topic: str, query: tuple[str, int] = ALL) -> list[tuple[object, ...]]:
    """The rows that one undisturbed consumer makes of a topic."""
    async with new_database() as url:
        async with reading(kafka, topic, url):
            await until(url, *query)
        return await rows(url)


async def test_rows_stand_at_the_places_of_their_messages(kafka: Broker, topic: str, database_url: str) -> None:
    """A message's position is its partition and offset, and a position that it carries is ignored."""
    produce(kafka, topic, life(), partition=2)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
    [found] = await rows(
        database_url,
        "SELECT current_state, version, last_applied_partition, last_applied_offset, last_applied_sequence"
        " FROM registration_projections",
    )
    assert found == ("active", 5, f"{topic}-2", 4, None)


async def test_watermarks_say_what_is_in_and_when(kafka: Broker, topic: str, database_url: str) -> None:
    """A watermark stands at the last message and its time; at the end of the partition it moves on with the clock."""
    produce(kafka, topic, life(), partition=1, timestamp=1_767_225_600_000)
    async with reading(kafka, topic, database_url):
        await until(database_url, "SELECT count(*) FROM watermarks WHERE caught_up_at IS NOT NULL", 1)
        [(offset, message_at, before)] = await rows(
            database_url, 'SELECT "offset", message_at::text, caught_up_at::text FROM watermarks'
        )
        await until(database_url, f"SELECT count(*) FROM watermarks WHERE caught_up_at > '{before}'", 1)
    assert (offset, str(message_at)[:10]) == (4, "2026-01-01")


AHEAD = 1800  # seconds; Apache Kafka refuses messages that are more than an hour ahead


async def test_a_message_from_the_future_is_no_reason_to_expire_anything(
    kafka: Broker, topic: str, database_url: str
) -> None:
    """A watermark's time is never later than the moment in which the message was taken in."""
    produce(kafka, topic, life(), partition=1, timestamp=int((time.time() + AHEAD) * 1000))
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
    assert await rows(database_url, "SELECT message_at <= updated_at FROM watermarks") == [(True,)]


async def test_what_cannot_be_taken_in_goes_to_the_dead_letters(kafka: Broker, topic: str, database_url: str) -> None:
    """Unreadable and conflicting messages are kept with bytes, place and error, and the partition goes on."""
    first, *others = life()
    conflict = event_json("node.heartbeat", 9)
    await _stand_elsewhere(database_url, conflict | {"entity_id": str(node(1))})
    bad: list[Json | bytes | None] = [b"\xff", None, {"entity_id": "7", "type": "node.heartbeat\0"}]
    produce(kafka, topic, [first, *bad, conflict | {"entity_id": str(node(1))}, *others], partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(9))
    found = await rows(database_url, DEAD)
    assert [(row[0], row[1]) for row in found] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert [row[3] for row in found][:2] == [b"\xff", None]
    errors = [str(row[5]) for row in found]
    for error, part in zip(errors, ("not UTF-8", "no value", "unknown event type", "conflict: "), strict=True):
        assert part in error
    assert await rows(database_url, "SELECT version FROM registration_projections WHERE version = 5") == [(5,)]


async def _stand_elsewhere(url: str, event: Json) -> None:
    """Put an entity on a track of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "INSERT INTO registration_projections (entity_id, domain, current_state, node_type,"
            " last_applied_event_id, last_applied_sequence, registered_at, updated_at, version)"
            " VALUES ($1, 'registration', 'active', 'compute', $1, 1, now(), now(), 1)",
            event["entity_id"],
        )
    finally:
        await connection.close()


async def test_watermark_and_rows_are_one_transaction(kafka: Broker, topic: str, database_url: str) -> None:
    """As long as the watermark can't be written no row is, and afterwards all is in once."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE SEQUENCE tries; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM nextval('tries'); RAISE EXCEPTION 'not now' USING ERRCODE = '55P03'; END $$;"
        " CREATE TRIGGER refuse BEFORE INSERT ON watermarks EXECUTE FUNCTION refuse()"
    )
    produce(kafka, topic, life())
    async with reading(kafka, topic, database_url):
        await until(database_url, "SELECT last_value > 2 FROM tries", True)
        assert await rows(database_url) == []
        await connection.execute("DROP TRIGGER refuse ON watermarks")
        await until(database_url, *taken(5))
    await connection.close()
    assert await rows(database_url, "SELECT version FROM registration_projections") == [(5,)]


async def test_a_replay_gives_the_same_rows(kafka: Broker, topic: str, database_url: str) -> None:
    """Without watermarks a topic is read from its beginning, and nothing changes by that, dead letters included."""
    produce(kafka, topic, [*lives(), b"broken"])
    total = taken(EVENTS + 1)
    async with reading(kafka, topic, database_url):
        await until(database_url, *total)
    before = await rows(database_url), await rows(database_url, WATERMARKS), await rows(database_url, DEAD)
    await rows(database_url, "DELETE FROM watermarks")
    async with reading(kafka, topic, database_url):
        await until(database_url, *total)
    after = await rows(database_url), await rows(database_url, WATERMARKS), await rows(database_url, DEAD)
    assert after == before
    assert len(before[0]) == NODES


async def test_reading_goes_on_at_the_watermark(kafka: Broker, topic: str, database_url: str) -> None:
    """What another group has read is not read again, and Kafka is not asked how far that was."""
    produce(kafka, topic, life(), partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
    await rows(database_url, "DELETE FROM registration_projections")
    produce(kafka, topic, life(node(1)), partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(10))
    assert await rows(database_url, "SELECT entity_id FROM registration_projections") == [(node(1),)]


async def test_whoever_has_lost_a_partition_writes_nothing_of_it(
    kafka: Broker, topic: str, database_url: str
) -> None:
    """A consumer that finds a watermark elsewhere than it left it begins anew there."""
    produce(kafka, topic, life(), partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
        await rows(database_url, 'UPDATE watermarks SET "offset" = 9')
        produce(kafka, topic, [*life(node(1)), *life(node(2))], partition=0)
        await until(database_url, *taken(15))
    written = await rows(database_url, "SELECT entity_id, version FROM registration_projections")
    assert sorted(written) == sorted([(NODE, 5), (node(2), 5)])


async def test_consumers_share_the_partitions_and_hand_them_over(
    kafka: Broker, topic: str, database_url: str
) -> None:
    """While consumers come and go, each message is taken in once: the rows are those of one clean read."""
    events, group = lives(), uuid4().hex
    third = len(events) // 3
    produce(kafka, topic, events[:third])
    async with AsyncExitStack() as stack:
        async with reading(kafka, topic, database_url, group):
            await until(database_url, *taken(third))
            await stack.enter_async_context(reading(kafka, topic, database_url, group))
            produce(kafka, topic, events[third : 2 * third])
            await until(database_url, *taken(2 * third))
            await until(database_url, "SELECT count(DISTINCT consumer) FROM watermarks", 2)
        produce(kafka, topic, events[2 * third :])
        await until(database_url, *ALL)
    assert await rows(database_url) == await clean_read(kafka, topic)


async def test_a_killed_consumer_leaves_nothing_half_done(kafka: Broker, topic: str, database_url: str) -> None:
    """After kill -9 in the middle another one goes on, and the rows are those of one clean read."""
    events, group = lives(), uuid4().hex
    produce(kafka, topic, events[: EVENTS // 2])
    with process(database_url, kafka.servers, topic, group) as first:
        await until(database_url, 'SELECT sum("offset") > 0 FROM watermarks', True)
        produce(kafka, topic, events[EVENTS // 2 :])
        first.kill()
        await asyncio.to_thread(first.wait, PATIENCE)
    with process(database_url, kafka.servers, topic, group) as second:
        await until(database_url, *ALL)
        second.terminate()
        assert await asyncio.to_thread(second.wait, PATIENCE) == 0
    assert await rows(database_url) == await clean_read(kafka, topic)


async def test_a_database_that_is_away_is_waited_for(kafka: Broker, topic: str, database_url: str) -> None:
    """What was not written while the database was away is written when it is there again, once."""
    produce(kafka, topic, lives()[:NODES])
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(NODES))
        async with _away(database_url):
            produce(kafka, topic, lives()[NODES:])
            await asyncio.sleep(0)
        await until(database_url, *ALL)
    assert await rows(database_url) == await clean_read(kafka, topic)


async def test_a_database_that_is_away_does_not_hold_up_the_end(kafka: Broker, topic: str, database_url: str) -> None:
    """A consumer that is told to stop does so though its batch can't be written."""
    produce(kafka, topic, life())
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
        async with _away(database_url):
            produce(kafka, topic, life(node(1)))


@asynccontextmanager
async def _away(url: str) -> AsyncIterator[None]:
    """A database that takes no connections while this lasts."""
    server = await asyncpg.connect(on_server(url, "postgres"))
    name = urlsplit(url).path[1:]
    try:
        await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield
        await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    finally:
        await server.close()


async def test_a_broker_that_is_away_is_waited_for(topic: str, database_url: str) -> None:
    """While it is away nothing counts as caught up, and when it is back reading goes on."""
    with built_in_broker() as broker:
        broker.create_topic(topic)
        produce(broker, topic, life(), partition=0)
        caught_up = "SELECT max(caught_up_at)::text FROM watermarks"
        async with reading(broker, topic, database_url):
            await until(database_url, "SELECT count(*) FROM watermarks WHERE caught_up_at IS NOT NULL", 1)
            broker.go_down()
            away_at = (await rows(database_url, "SELECT clock_timestamp()"))[0][0]
            await until(database_url, f"SELECT clock_timestamp() > timestamptz '{away_at}' + interval '1.5 s'", True)
            [(last,)] = await rows(database_url, caught_up)
            broker.come_up()
            await until(database_url, f"SELECT max(caught_up_at) > '{last}' FROM watermarks", True)
            produce(broker, topic, life(node(1)), partition=0)
            await until(database_url, *taken(10))
        assert await rows(
            database_url, f"SELECT timestamptz '{last}' < timestamptz '{away_at}' + interval '1 s'"
        ) == [(True,)]


async def test_a_topic_that_is_made_later_is_found(kafka: Broker, database_url: str) -> None:
    """A consumer may be started before its topic is there."""
    topic = f"test-{uuid4().hex}"
    async with reading(kafka, topic, database_url):
        await asyncio.sleep(0)
        kafka.create_topic(topic)
        produce(kafka, topic, life())
        await until(database_url, *taken(5))


async def test_the_command_reads_until_it_is_stopped(kafka: Broker, topic: str, database_url: str) -> None:
    """`pqs consume` tells Kafka how far it has written before it leaves, and ends with status 0."""
    produce(kafka, topic, life(), partition=3)
    group = f"group-{uuid4().hex}"
    given = {"kafka": kafka.servers, "topics_in": topic, "consumer_group": group, "database_url": database_url}
    with command("consume", **given) as child:
        await until(database_url, *taken(5))
        child.terminate()
        printed, _ = await asyncio.to_thread(child.communicate, timeout=PATIENCE)
    assert (child.returncode, printed.decode()) == (0, f"consuming {topic}\n")
    client = Client({"bootstrap.servers": kafka.servers, "group.id": group, "log_level": 0})
    committed = client.committed([TopicPartition(topic, 3)], timeout=PATIENCE)
    client.close()
    assert [each.offset for each in committed] == [5]


@pytest.mark.parametrize(("given", "missing"), [({}, "PQS_KAFKA"), ({"kafka": "127.0.0.1:1"}, "PQS_TOPICS_IN")])
def test_the_command_says_what_is_missing(given: Json, missing: str) -> None:
    """Without servers or topics there is one line that names the setting."""
    assert f"{missing} is not set" in refusal(pqs("consume", database_url="postgresql://127.0.0.1:1/none", **given))


async def test_settings_that_the_client_refuses_are_said(database: Database) -> None:
    """An option that librdkafka does not take ends the start with its words."""
    consumer = consumer_on(database, "127.0.0.1:1", "topic", "group", **{"session.timeout.ms": -1})
    with pytest.raises(StartError, match=r"session\.timeout\.ms"):
        await consumer.run(asyncio.Event())


async def test_the_settings_lead_to_a_consumer(kafka: Broker, topic: str, database_url: str) -> None:
    """`consuming` reads what PQS_TOPICS_IN names."""
    other = f"test-{uuid4().hex}"
    kafka.create_topic(other)
    produce(kafka, topic, life())
    produce(kafka, other, life(node(1)))
    settings = read_settings({"kafka": kafka.servers, "topics_in": f"{topic},{other}", "consumer_group": other})
    async with consuming(settings, database_url) as consumer, running(consumer):
        await until(database_url, *taken(10))
    assert len({row[0] for row in await rows(database_url, "SELECT topic FROM watermarks")}) == 2
