"""Input from Kafka: every message is applied once and in order, despite failures of consumers."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition

from app.domain.decider import Deadline
from app.domain.events import ForgottenData
from app.domain.positions import Position
from app.domain.registration import Timing
from app.domain.results import Result
from app.errors import RefusedValuesError, StartError, UnusableDatabaseError
from app.inbound.consumer import REFUSED_BY_DATABASE
from app.inbound.holding import HEADERLESS
from app.inbound.membership import MAX_BATCH
from app.parts import Parts
from app.projection.acts import Acts
from app.projection.changes import ChangeLog
from app.projection.entries import EntryBuilder
from app.projection.projector import Also, Choose, Projector, Revise
from app.projection.sweep import Sweep
from app.settings import read_settings
from app.store.audit import Act
from app.store.database import Database
from app.store.schema import create_engine, initialize_schema
from tests.broker import PATIENCE, Broker, built_in_broker, produce_raw
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
from tests.databases import bare_database, new_database, on_server
from tests.making import NODE, Json, at, event_json, life, node
from tests.processes import pqs, refusal
from tests.refusing import POISON

NODES = 40
EVENTS = 5 * NODES
SMALL = 10  # messages that a batch has where several are to be under way
ALL = taken(EVENTS)
WRITERS = "SELECT count(DISTINCT consumer) FROM watermarks"
WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
DEAD = 'SELECT partition, "offset", key, value, headers, error FROM dead_letters ORDER BY partition, "offset"'


def lives(nodes: int = NODES) -> list[Json]:
    """The events of some nodes: each step for all nodes, then the next step."""
    return [event for step in zip(*(life(node(number)) for number in range(nodes)), strict=True) for event in step]


@asynccontextmanager
async def reading(
    kafka: Broker, topic: str, url: str, group: str | None = None, *, batch: int = MAX_BATCH
) -> AsyncIterator[None]:
    """Run a consumer that reads a topic into a database within this context."""
    database = patient_database(url)
    try:
        async with running(consumer_on(database, kafka.servers, topic, group or uuid4().hex, batch=batch)):
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
    """A row's position is its message's partition and offset; a position in the message is ignored."""
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
    """A watermark has the last message's offset and time; at the partition's end its time follows the clock."""
    produce(kafka, topic, life(), partition=1, timestamps=[1_767_225_600_000] * 5)
    async with reading(kafka, topic, database_url):
        is_read = "SELECT count(*) FROM watermarks WHERE partition = 1 AND "
        await until(database_url, is_read + "caught_up_at IS NOT NULL", 1)
        [(offset, message_at, before)] = await rows(
            database_url, 'SELECT "offset", message_at::text, caught_up_at::text FROM watermarks WHERE partition = 1'
        )
        await until(database_url, is_read + f"caught_up_at > '{before}'", 1)
    assert (offset, str(message_at)[:10]) == (4, "2026-01-01")


AHEAD = 1800  # seconds; Apache Kafka refuses messages that are more than an hour ahead


async def test_a_message_from_the_future_is_no_reason_to_expire_anything(
    kafka: Broker, topic: str, database_url: str
) -> None:
    """A message's time in the future does not move the time up to which its partition is read."""
    produce(kafka, topic, life(), partition=1, timestamps=[int((time.time() + AHEAD) * 1000)] * 5)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
        await until(database_url, "SELECT caught_up_at IS NOT NULL FROM watermarks WHERE partition = 1", True)
    times = "SELECT message_at, caught_up_at <= updated_at FROM watermarks WHERE partition = 1"
    assert await rows(database_url, times) == [(None, True)]


FAST = 600  # seconds by which the clock of one producer is ahead
BEHIND = 900  # seconds: how old the backlog is, and so longer
WAITING = 30  # nodes whose heartbeats wait


class Swept(Projector):
    """A projector that sweeps everything after each batch, and records what has expired by then."""

    def __init__(self, database: Database, sweep: Sweep) -> None:
        super().__init__(database, Timing())
        self._swept_database, self._sweep = database, sweep
        self.expired: list[list[UUID]] = []

    async def persist_chosen(self, choose: Choose, *, revise: Revise | None = None, also: Also) -> list[Result]:
        """Take events in, and sweep."""
        results = await super().persist_chosen(choose, revise=revise, also=also)
        page = await self._sweep.page(Deadline.LIVENESS)
        while page is not None:
            page = await self._sweep.page(Deadline.LIVENESS, page)
        query = "SELECT entity_id FROM registration_projections WHERE liveness_timeout_emitted_at IS NOT NULL"
        found = await self._swept_database.read(lambda connection: connection.fetch(query))
        self.expired.append([row["entity_id"] for row in found])
        return results


def backlog(start: float) -> list[tuple[float, Json]]:
    """Heartbeats of many nodes every 20 seconds, with their times, in one partition.

    The first node's producer has a fast clock; the second node sends nothing more.
    """
    fast, dead, *others = (node(number) for number in range(WAITING + 2))
    said: list[tuple[float, Json]] = []

    def say(time: float, type_: str, entity_id: UUID, **fields: Any) -> None:
        sequence = len(said)
        occurred_at = datetime.fromtimestamp(time, UTC).isoformat()
        said.append((time, event_json(type_, sequence, entity_id=entity_id, occurred_at=occurred_at, **fields)))

    for each in (fast, dead, *others):
        for type_ in ("node.introspected", "node.registration_acked"):
            say(start + FAST * (each == fast), type_, each)
    last = BEHIND - 100
    for seconds in range(20, last + 1, 20):
        for number, each in enumerate(others):
            # The last ones are enough until long after this test.
            data = {"liveness_deadline": at(10.0**9)} if seconds == last else {}
            say(start + seconds + number / WAITING, "node.heartbeat", each, data=data)
            if number == seconds % WAITING:
                say(start + seconds + FAST, "node.heartbeat", fast, data={"liveness_deadline": at(10.0**9)})
    return said


async def test_no_node_expires_whose_heartbeats_wait(
    kafka: Broker, topic: str, database: Database, database_url: str
) -> None:
    """During a backlog with one producer's fast clock, a sweep expires the dead node and no other."""
    for partition in (0, 2, 3):  # a partition that was never read protects every node
        await rows(
            database_url,
            'INSERT INTO watermarks (topic, partition, "offset", caught_up_at, updated_at, consumer)'
            f" VALUES ('{topic}', {partition}, -1, now(), now(), 'before')",
        )
    said = backlog(time.time() - BEHIND)
    produce(kafka, topic, [each for _, each in said], partition=1, timestamps=[int(each * 1000) for each, _ in said])
    scans = Database(database_url, pool_size=2, statement_timeout=timedelta(seconds=5), scans=True)
    projector = Swept(database, Sweep(database, scans, EntryBuilder()))
    consumer = consumer_on(database, kafka.servers, topic, topic, batch=SMALL, projector=projector)
    async with running(consumer):
        await until(database_url, *taken(len(said)))
    await scans.close()
    assert {each for found in projector.expired for each in found} == {node(1)}
    assert projector.expired.index([node(1)]) < len(projector.expired) // 2


async def test_what_cannot_be_taken_in_goes_to_the_dead_letters(kafka: Broker, topic: str, database_url: str) -> None:
    """Unreadable and conflicting messages become dead letters with bytes, position and error; reading goes on."""
    first, *others = life()
    conflict = event_json("node.heartbeat", 9)
    await _stand_elsewhere(database_url, conflict | {"entity_id": str(node(1))})
    bad: list[Json | bytes | None] = [b"\xff", b"[]", {"entity_id": "7", "type": "node.heartbeat\0"}]
    produce(kafka, topic, [first, *bad, conflict | {"entity_id": str(node(1))}, *others], partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(9))
    found = await rows(database_url, DEAD)
    assert [(row[0], row[1]) for row in found] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert [row[3] for row in found][:2] == [b"\xff", b"[]"]
    errors = [str(row[5]) for row in found]
    for error, part in zip(errors, ("not UTF-8", "expected", "unknown event type", "conflict: "), strict=True):
        assert part in error
    assert await rows(database_url, "SELECT version FROM registration_projections WHERE version = 5") == [(5,)]


async def test_a_header_whose_name_is_no_text_stops_nothing(kafka: Broker, topic: str, database_url: str) -> None:
    """Unreadable headers are named in a dead letter's error; an event that does not need them is applied."""
    produce(kafka, topic, lives(), partition=0)  # so many that the interpreter has specialised the code by then
    last = event_json("node.heartbeat", 9, entity_id=node(0))
    for value in (msgspec.json.encode(last), b"broken"):
        produce_raw(kafka, topic, value, b"\xff")
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(EVENTS + 2))
    [(_, offset, _, kept, headers, error)] = await rows(database_url, DEAD)
    assert (offset, kept, headers) == (EVENTS + 1, b"broken", b"[]")
    assert str(error).endswith(HEADERLESS)
    query = "SELECT entity_id FROM registration_projections WHERE version = 6"
    assert await rows(database_url, query) == [(node(0),)]


async def _stand_elsewhere(url: str, event: Json) -> None:
    """Move an entity to a track of its own."""
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


@pytest.mark.parametrize("kind", POISON)
async def test_what_postgresql_refuses_stops_nothing(kafka: Broker, topic: str, database_url: str, kind: str) -> None:
    """A message that only PostgreSQL refuses becomes a dead letter, wherever it stands; all others apply in order."""
    statements, data = POISON[kind]
    for statement in statements:
        await rows(database_url, statement)
    places = {0: (0, 7, 8, 33), 3: (12,)}
    for partition, bad in places.items():
        values = [each | {"domain": f"of {partition}"} for each in lives(6)]
        for place in bad:
            poison = event_json("registration.initiated", 1, entity_id=node(1000 + place), data=data)
            values.insert(place, poison)
        produce(kafka, topic, values, partition=partition)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(65))
        await until(database_url, "SELECT count(*) FROM watermarks WHERE message_at IS NOT NULL", 2)
    dead = await rows(database_url, DEAD)
    assert [(row[0], row[1]) for row in dead] == [
        (partition, place) for partition in places for place in places[partition]
    ]
    assert {row[5] for row in dead} == {REFUSED_BY_DATABASE.error}
    versions = await rows(
        database_url, "SELECT current_state, version, count(*) FROM registration_projections GROUP BY 1, 2"
    )
    assert versions == [("active", 5, 12)]


async def test_a_database_of_another_encoding_is_refused() -> None:
    """A database that cannot hold every letter is refused before it is migrated, and the error names its encoding."""
    async with bare_database("ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'") as url:
        engine = create_engine(url, pool_size=2)
        with pytest.raises(UnusableDatabaseError, match="encoding is LATIN1, and the service needs UTF8"):
            await initialize_schema(engine)
        await engine.dispose()


async def test_what_cannot_even_be_a_dead_letter_ends_the_consumer(
    kafka: Broker, topic: str, database_url: str
) -> None:
    """If the database refuses the dead letter too, the consumer logs it and stops, and skips no message."""
    await rows(database_url, "ALTER TABLE dead_letters ADD CHECK (topic = '')")
    produce(kafka, topic, [*life()[:2], b"broken", *life()[2:]], partition=0)
    database = patient_database(database_url)
    with pytest.raises(RefusedValuesError):
        async with asyncio.timeout(PATIENCE):
            await consumer_on(database, kafka.servers, topic, topic).run(asyncio.Event())
    await database.close()
    assert await rows(database_url, WATERMARKS) == [(0, 1)]
    assert await rows(database_url, DEAD) == []


async def test_watermark_and_rows_are_one_transaction(kafka: Broker, topic: str, database_url: str) -> None:
    """While the watermark cannot be written no row is; afterwards each message is applied once."""
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
    """Without watermarks a topic is reread from the start, which changes no row and no dead letter."""
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
    """A consumer of another group resumes at the watermark, and ignores Kafka's committed offset."""
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
    """A consumer whose watermark was moved writes nothing, and restarts from the moved watermark."""
    produce(kafka, topic, life(), partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
        await rows(database_url, 'UPDATE watermarks SET "offset" = 9 WHERE partition = 0')
        produce(kafka, topic, [*life(node(1)), *life(node(2))], partition=0)
        await until(database_url, *taken(15))
    written = await rows(database_url, "SELECT entity_id, version FROM registration_projections")
    assert sorted(written) == sorted([(NODE, 5), (node(2), 5)])


class Feed:
    """Writes events as fast as they are applied, so that unread messages always exist: first the lives of some
    nodes, one step of all after the other, and then their heartbeats."""

    def __init__(self, kafka: Broker, topic: str, url: str) -> None:
        self._kafka, self._topic, self._url = kafka, topic, url
        self.fed = 0

    def _rounds(self) -> Iterator[list[Json]]:
        events = lives()
        yield from (events[start : start + NODES] for start in range(0, EVENTS, NODES))
        for number in count(10):
            yield [event_json("node.heartbeat", number, entity_id=node(each)) for each in range(NODES)]

    async def run(self, enough: asyncio.Event) -> None:
        """Write rounds until there are enough, each once the round before the last one is applied."""
        for each in self._rounds():
            if enough.is_set():
                break
            await asyncio.to_thread(produce, self._kafka, self._topic, each)
            await until(self._url, f'SELECT coalesce(sum("offset" + 1), 0) >= {self.fed} FROM watermarks', True)
            self.fed += len(each)


async def test_consumers_share_the_partitions_and_hand_them_over(
    kafka: Broker, topic: str, database_url: str
) -> None:
    """While consumers come and go, each message is applied once: the rows equal those of a clean read."""
    feed, group, enough = Feed(kafka, topic, database_url), uuid4().hex, asyncio.Event()
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        feeding = tasks.create_task(feed.run(enough))
        async with reading(kafka, topic, database_url, group, batch=SMALL):
            await until(database_url, WRITERS, 1)
            await stack.enter_async_context(reading(kafka, topic, database_url, group, batch=SMALL))
            await until(database_url, WRITERS, 2)
            before = feed.fed
        await until(database_url, WRITERS, 1)
        after = feed.fed
        enough.set()
        await feeding
        await until(database_url, *taken(feed.fed))
    assert NODES <= before < after
    assert await rows(database_url) == await clean_read(kafka, topic, taken(feed.fed))
    assert await rows(database_url, DEAD) == []


async def test_a_killed_consumer_leaves_nothing_half_done(kafka: Broker, topic: str, database_url: str) -> None:
    """Of two consumers one is killed inside a batch; the other goes on, and the rows equal those of a clean read."""
    events, group = lives(), uuid4().hex
    half = EVENTS // 2
    produce(kafka, topic, events[:half])
    connection = await asyncpg.connect(database_url)
    with (
        process(database_url, kafka.servers, topic, group, batch=SMALL) as first,
        process(database_url, kafka.servers, topic, group, batch=SMALL) as second,
    ):
        await until(database_url, *taken(half))
        await until(database_url, WRITERS, 2)
        async with connection.transaction():
            # A node of the first one's, that no batch gets past.
            held = await connection.fetchval(
                "SELECT entity_id FROM registration_projections AS r JOIN watermarks AS w"
                " ON r.last_applied_partition = w.topic || '-' || w.partition"
                " WHERE w.consumer LIKE $1 LIMIT 1 FOR UPDATE OF r",
                f"%:{first.pid}:%",
            )
            assert held is not None
            produce(kafka, topic, events[half:])
            await until(database_url, WAITERS, 1)
            first.kill()
            await asyncio.to_thread(first.wait, PATIENCE)
            [(so_far,)] = await rows(database_url, ALL[0])
        await until(database_url, *ALL)
        second.terminate()
        assert await asyncio.to_thread(second.wait, PATIENCE) == 0
    await connection.close()
    assert half <= int(str(so_far)) < EVENTS
    assert await rows(database_url) == await clean_read(kafka, topic)


async def test_a_database_that_is_away_is_waited_for(kafka: Broker, topic: str, database_url: str) -> None:
    """A batch that met a database outage is written once, after the outage."""
    produce(kafka, topic, lives()[:NODES])
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(NODES))
        async with _away(database_url):
            produce(kafka, topic, lives()[NODES:])
            await asyncio.sleep(0)
        await until(database_url, *ALL)
    assert await rows(database_url) == await clean_read(kafka, topic)
    assert await rows(database_url, DEAD) == []


async def test_a_database_that_is_away_does_not_hold_up_the_end(kafka: Broker, topic: str, database_url: str) -> None:
    """A consumer stops although its batch cannot be written."""
    produce(kafka, topic, life())
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
        async with _away(database_url):
            produce(kafka, topic, life(node(1)))


@asynccontextmanager
async def _away(url: str) -> AsyncIterator[None]:
    """Within this context the database accepts no connections."""
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
    """Without a broker no partition counts as caught up; when the broker is back, reading continues."""
    with built_in_broker() as broker:
        broker.create_topic(topic)
        produce(broker, topic, life(), partition=0)
        caught_up = "SELECT max(caught_up_at)::text FROM watermarks"
        async with reading(broker, topic, database_url):
            await until(database_url, "SELECT count(*) FROM watermarks WHERE caught_up_at IS NOT NULL", 4)
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
    """A consumer may start before its topic exists."""
    topic = f"test-{uuid4().hex}"
    async with reading(kafka, topic, database_url):
        await asyncio.sleep(0)
        kafka.create_topic(topic)
        produce(kafka, topic, life())
        await until(database_url, *taken(5))


async def test_the_command_reads_until_it_is_stopped(kafka: Broker, topic: str, database_url: str) -> None:
    """A stopped `pqs consume` commits its written offsets to Kafka, and ends with status 0."""
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
    """Without servers or topics, one line names the missing setting."""
    assert f"{missing} is not set" in refusal(pqs("consume", database_url="postgresql://127.0.0.1:1/none", **given))


@pytest.mark.parametrize("given", [{"topic_out": "mine"}, {"topic_out": "mine", "bus": "kafka"}])
def test_the_command_does_not_read_what_the_service_writes(given: Json) -> None:
    """If the output topic is among the input topics, the start is refused by a line that names both settings."""
    run = pqs(
        "consume",
        database_url="postgresql://127.0.0.1:1/none",
        kafka="127.0.0.1:1",
        topics_in="nodes,mine",
        **given,
    )
    line = refusal(run)
    assert "PQS_TOPICS_IN names mine" in line
    assert "PQS_TOPIC_OUT" in line


async def test_a_topic_that_the_service_does_not_write_may_be_read(database_url: str) -> None:
    """With the bus off, PQS_TOPIC_OUT may be an input topic."""
    given = {"kafka": "127.0.0.1:1", "bus": "off", "topics_in": "mine", "topic_out": "mine"}
    async with Parts(read_settings(given), database_url) as parts:
        parts.consumer()


def test_the_help_says_what_has_to_be_the_same() -> None:
    """The help says that the consumer's messages go out through the service's outbox."""
    said = " ".join(pqs("consume", "--help").stdout.split())
    assert "PQS_BUS, PQS_TOPIC_OUT and PQS_CONSUL_URL the values that the service has" in said


async def test_settings_that_the_client_refuses_are_said(database: Database) -> None:
    """An option that librdkafka refuses prevents the start, with librdkafka's message."""
    consumer = consumer_on(database, "127.0.0.1:1", "topic", "group", options={"session.timeout.ms": -1})
    with pytest.raises(StartError, match=r"session\.timeout\.ms"):
        await consumer.run(asyncio.Event())


async def test_the_settings_lead_to_a_consumer(kafka: Broker, topic: str, database_url: str) -> None:
    """A consumer built from settings reads the topics in PQS_TOPICS_IN."""
    other = f"test-{uuid4().hex}"
    kafka.create_topic(other)
    produce(kafka, topic, life())
    produce(kafka, other, life(node(1)))
    settings = read_settings({"kafka": kafka.servers, "topics_in": f"{topic},{other}", "consumer_group": other})
    async with Parts(settings, database_url) as parts, running(parts.consumer()):
        await until(database_url, *taken(10))
    assert len({row[0] for row in await rows(database_url, "SELECT topic FROM watermarks")}) == 2


async def test_messages_behind_and_after_a_tombstone(kafka: Broker, topic: str, database_url: str) -> None:
    """A tombstone at a position stops waiting messages up to it and registrations from before it; a later one begins.

    None of the messages becomes a dead letter.
    """
    database = patient_database(database_url)
    acts = Acts(database, EntryBuilder(), ChangeLog())
    place = Position(partition=f"{topic}-1", offset=2)
    act = Act(principal="test", action="entities.forget", target=str(NODE))
    await acts.forget((NODE, "registration"), place, ForgottenData(), check=lambda _: None, act=act)
    soon = datetime.now(UTC) + timedelta(seconds=60)  # after the forget, and not ahead of the clock by too much
    waiting = [*life()[:2], event_json("registration.initiated", 9, entity_id=node(1)), *life()[2:]]
    later = [
        event_json("registration.initiated", 20),
        event_json("registration.initiated", 21, occurred_at=soon.isoformat()),
        event_json("registration.forgotten", 22, occurred_at=(soon + timedelta(seconds=1)).isoformat()),
        event_json("node.heartbeat", 23, occurred_at=(soon + timedelta(seconds=2)).isoformat()),
    ]
    produce(kafka, topic, waiting + later, partition=1)
    async with reading(kafka, topic, database_url, batch=3):
        await until(database_url, *taken(10))
    found = await rows(
        database_url,
        "SELECT version, last_applied_offset, forgotten_at IS NULL FROM registration_projections ORDER BY version",
    )
    assert found == [(1, 2, True), (1 + 3 + 1 + 1 + 1 + 1, 9, False)]
    assert await rows(database_url, "SELECT error FROM dead_letters") == []
    await database.close()
