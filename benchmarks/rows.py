"""The rows of the table, and the events for them.

The id of entity `i` is computed from `i` and scattered like a random one; `requests.lua` and the pgbench scripts
compute the same. An entity's state follows from `i % 100`: entities below ALIVE accept heartbeats.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from app.store.schema import REVISIONS
from benchmarks.machine import Machine

SCATTER = 618_033_989  # its product with i stays below 2**53, the limit of exact numbers in Lua
ALIVE = 91  # of a hundred entities; the rest is in a terminal state
STEP = 611_953  # a prime: steps through the living entities in an order unrelated to their pages
FRESH = 20_000_000  # ids from here on belong to entities that register during the measurement
FRESH_EVERY = 10  # of a stream's events, one is a new registration
RARE = 100  # entities with a rare capability

# Half of the ack deadlines and one in fourteen of the liveness deadlines have passed at the time $2.
LOAD = f"""
INSERT INTO registration_projections (
    entity_id, domain, current_state, node_type, node_version, capabilities,
    ack_deadline, liveness_deadline, last_heartbeat_at, ack_timeout_emitted_at, liveness_timeout_emitted_at,
    last_applied_event_id, last_applied_sequence, last_applied_partition, last_applied_offset,
    registered_at, updated_at, version)
SELECT
    (lpad(to_hex(i * {SCATTER} % 4294967296), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid,
    'registration',
    (CASE WHEN s < 70 THEN 'active' WHEN s < 74 THEN 'accepted' WHEN s < 80 THEN 'awaiting_ack'
          WHEN s < 85 THEN 'pending_registration' WHEN s < 87 THEN 'ack_received'
          WHEN s < {ALIVE} THEN 'ack_timed_out' WHEN s < 94 THEN 'rejected'
          ELSE 'liveness_expired' END)::registration_state,
    (ARRAY['compute', 'storage', 'gateway', 'sensor', 'router'])[1 + i % 5],
    '1.' || i % 20 || '.0',
    jsonb_build_object('cpu', 4 << (i % 5)::int, 'gpu', i % 3 = 0, 'region', 'eu-' || i % 9,
                       'tags', jsonb_build_array('rack-' || i % 400, 'batch'))
        || CASE WHEN i % ($1::bigint / {RARE}) = 0 THEN '{{"rare": true}}'::jsonb ELSE '{{}}'::jsonb END,
    CASE WHEN s BETWEEN 70 AND 79 THEN
             CASE WHEN i / 100 % 2 = 0 THEN as_of - (1 + i % 86400) * second ELSE as_of + (60 + i % 3600) * second END
         WHEN s BETWEEN 87 AND 90 THEN as_of - day END,
    CASE WHEN s < 5 THEN as_of - (1 + i % 86400) * second WHEN s < 70 THEN as_of + (1 + i % 90) * second
         WHEN s >= 94 THEN as_of - day END,
    CASE WHEN s < 70 OR s >= 94 THEN as_of - 2 * day END,
    CASE WHEN s BETWEEN 87 AND 90 THEN as_of - day END,
    CASE WHEN s >= 94 THEN as_of - day END,
    gen_random_uuid(), CASE WHEN $3::text IS NULL THEN 5 END, $3, 0 * length($3), as_of - 30 * day, as_of - 2 * day, 5
FROM generate_series(0, $1::bigint - 1) AS i,
     LATERAL (SELECT i % 100 AS s, $2::timestamptz AS as_of, interval '1 day' AS day, interval '1 second' AS second) c
"""

SECONDARY = """
SELECT array_agg(indexdef) FROM pg_indexes
WHERE schemaname = 'public' AND tablename = 'registration_projections' AND indexname NOT LIKE '%_pkey'
"""


def load(machine: Machine, database: str, rows: int, as_of: datetime, *, partition: str | None = None) -> None:
    """Create a database of `rows` registrations, a multiple of 400.

    They stand at sequence 5, or at the first offset of a partition.

    The rows are loaded at the first revision, and later revisions find them: each revision has to fill whatever it
    keeps beside the rows, such as counters, in any case.
    """
    machine.ask("postgres", f"CREATE DATABASE {database}")
    machine.pqs("migrate", "--to", REVISIONS[0], database=database)
    indexes = machine.ask(database, SECONDARY)
    assert isinstance(indexes, list)
    for index in indexes:
        machine.ask(database, f"DROP INDEX {index.split()[2]}")
    machine.ask(database, LOAD, rows, as_of, partition)
    for index in indexes:
        machine.ask(database, index)
    machine.pqs("migrate", database=database)
    machine.rest(database)


def entity(number: int) -> str:
    """The id of an entity."""
    return f"{number * SCATTER % 2**32:08x}-0000-4000-8000-{number:012x}"


class Event(NamedTuple):
    """A heartbeat, or the registration of a new entity. `stamp` is its position and its time in µs since 1970."""

    entity_id: str
    stamp: int
    fresh: bool

    @property
    def event_id(self) -> str:
        """An event id of its own."""
        return f"{self.stamp * SCATTER % 2**32:08x}-0000-4000-9000-{self.stamp % 2**48:012x}"

    @property
    def occurred_at(self) -> str:
        """The time, to the microsecond."""
        return f"{_second(self.stamp // 1_000_000)}.{self.stamp % 1_000_000:06d}Z"

    def json(self) -> str:
        """The event as JSON. All heartbeats have one length, and all registrations another."""
        type_, data = "node.heartbeat", ""
        if self.fresh:
            type_ = "registration.initiated"
            data = ',"data":{"node_type":"compute","capabilities":{"cpu":16,"region":"eu-1","tags":["rack-7"]}}'
        return (
            f'{{"event_id":"{self.event_id}","type":"{type_}","entity_id":"{self.entity_id}",'
            f'"position":{{"sequence":{self.stamp}}},"occurred_at":"{self.occurred_at}"{data}}}'
        )


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Source:
    """The source of all events of a run: each is newer than its entity's row, whichever contender wrote it."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.alive = rows // 100 * ALIVE
        self._stamp = 0
        self._fresh = FRESH

    def stamps(self, count: int) -> int:
        """The first of `count` unique stamps, each higher than all earlier ones."""
        first = max(self._stamp, time.time_ns() // 1000)
        self._stamp = first + count
        return first

    def catch_up(self) -> None:
        """Wait until the clock has passed every stamp: for loads that take their stamps from PostgreSQL's clock."""
        while (ahead := self._stamp - time.time_ns() // 1000) >= 0:
            time.sleep((ahead + 1000) / 1_000_000)

    def events(self, count: int, *, lanes: int = 1) -> list[Iterator[Event]]:
        """`lanes` streams of `count` events each, one in FRESH_EVERY a registration.

        No entity is in two streams, because `lanes` divides `alive`.
        """
        first = self.stamps(count * lanes)
        fresh = self._fresh
        self._fresh += count * lanes

        def lane(number: int) -> Iterator[Event]:
            for place in range(number, count * lanes, lanes):
                is_fresh = place // lanes % FRESH_EVERY == 0
                yield Event(entity(fresh + place) if is_fresh else self.known(first + place), first + place, is_fresh)

        return [lane(number) for number in range(lanes)]

    def known(self, place: int) -> str:
        """The id of a living entity; `alive` consecutive places all differ."""
        number = place % self.alive * STEP % self.alive
        return entity(number // ALIVE * 100 + number % ALIVE)
