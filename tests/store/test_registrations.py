"""Every function over the registrations, on a real table: reads, the guarded write, lists, overdue scans, rebase."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import asdict, replace

from app.domain.decider import Deadline
from app.domain.events import Forgotten, Name, key_of
from app.domain.folding import Save
from app.domain.positions import MAX_NUMBER, Position
from app.domain.registration import Registration, tombstone
from app.domain.states import RegistrationState
from app.store import listing
from app.store.database import Connection, Database, LostRaceError, Work
from app.store.listing import EntityFilter
from app.store.overdue import DueKey, Overdue
from app.store.registrations import REGISTRATIONS
from tests.databases import new_database
from tests.making import START, event, node

DOMAIN = "registration"
NIL = UUID(int=0)
S = RegistrationState


def minutes(number: float) -> datetime:
    """A time, this many minutes after the start."""
    return START + timedelta(minutes=number)


def row(entity_id: UUID, **changes: Any) -> Registration:
    """A registration, active and at sequence 1."""
    fields: dict[str, Any] = {
        **dict.fromkeys(Registration.__struct_fields__),
        "entity_id": entity_id,
        "domain": DOMAIN,
        "current_state": S.ACTIVE,
        "node_type": "compute",
        "node_version": "1.0.0",
        "capabilities": {},
        "last_applied_event_id": node(1_000_000),
        "last_applied_sequence": 1,
        "registered_at": START,
        "updated_at": START,
        "version": 1,
    }
    return Registration(**fields | changes)


# A row with something in each column that may have something.
FULL = row(
    node(1),
    domain="Fünf 🚀",
    current_state=S.AWAITING_ACK,
    node_type="käfer \\ ' \" {} ,",
    node_version="2.0.0-β",
    capabilities={
        "gpu": True,
        "slots": [1, 2.5, None, {"deep": ["x", {}]}],
        "": "",
        "tags": ["a,b", '"{}"'],
        "n": -0.5,
    },
    ack_deadline=START + timedelta(microseconds=1),
    liveness_deadline=datetime.fromisoformat("9998-12-31T23:59:59.999999+00:00"),
    last_heartbeat_at=datetime.fromisoformat("1900-01-01T00:00:00+00:00"),
    ack_timeout_emitted_at=minutes(3),
    liveness_timeout_emitted_at=minutes(4),
    last_applied_event_id=node(2),
    last_applied_partition="topic, with {commas}-7",
    last_applied_offset=MAX_NUMBER,
    last_applied_sequence=None,
    registered_at=minutes(5),
    updated_at=minutes(6),
    correlation_id=node(3),
    version=MAX_NUMBER,
)


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Database]:
    """A migrated database for this file."""
    async with new_database() as url:
        database = Database(url, pool_size=4, statement_timeout=timedelta(seconds=5))
        yield database
        await database.close()


@pytest.fixture
async def database(shared: Database) -> Database:
    """It, without a row in it."""
    await shared.write(
        lambda connection: connection.execute("TRUNCATE registration_projections, registration_state_counts")
    )
    return shared


async def insert(database: Database, rows: Iterable[Registration]) -> None:
    """Put new rows into the table."""
    saves = [Save(registration, None) for registration in rows]
    await database.write(lambda connection: REGISTRATIONS.upsert.save(connection, saves))


async def update(database: Database, registration: Registration, read: Registration) -> None:
    """Write a row over the one that was read."""
    saves = [Save(registration, read)]
    await database.write(lambda connection: REGISTRATIONS.upsert.save(connection, saves))


async def table(database: Database, name: str) -> list[str]:
    """Every row of a table as text, with the transaction that wrote it."""
    rows = await database.read(lambda c: c.fetch(f"SELECT xmin, t::text AS row FROM {name} t ORDER BY row"))
    return [str(each) for each in rows]


def keys_of(*entity_ids: UUID) -> list[Name]:
    """The keys of these entities in the usual domain."""
    return [(entity_id, DOMAIN) for entity_id in entity_ids]


async def read(database: Database, entity_id: UUID, domain: str = DOMAIN) -> Registration | None:
    """The row as it stands."""
    return await database.read(lambda connection: REGISTRATIONS.get_entity_state(connection, entity_id, domain))


async def without_indexes(connection: Connection) -> None:
    """Have the rest of the transaction read the table as it lies."""
    for way in ("indexscan", "indexonlyscan", "bitmapscan"):
        await connection.execute(f"SET LOCAL enable_{way} = off")


# --- Point reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registration", [row(node(1)), FULL], ids=["sparse", "full"])
async def test_a_row_comes_back_as_it_went_in(database: Database, registration: Registration) -> None:
    """Every column survives the way there and back, in value and type."""
    await insert(database, [registration])
    found = await read(database, registration.entity_id, registration.domain)
    assert found == registration
    assert isinstance(found.current_state, RegistrationState)
    assert found.registered_at.utcoffset() == timedelta(0)


async def test_no_row(database: Database) -> None:
    """Without a row, the read returns None."""
    assert await read(database, node(1)) is None


async def test_a_domain_of_its_own(database: Database) -> None:
    """The same entity in two domains has two rows, and each is read by its own domain."""
    here, there = row(node(1)), row(node(1), domain="other", node_type="storage")
    await insert(database, [here, there])
    assert await read(database, node(1)) == here
    assert await read(database, node(1), "other") == there
    assert await read(database, node(1), "third") is None


async def test_a_lookup(database: Database) -> None:
    """A lookup gives the rows that there are, by id, however often an id is named."""
    rows = [row(node(number)) for number in range(5)]
    await insert(database, rows)
    asked = keys_of(node(3), node(99), node(1), node(3))
    found = await database.read(lambda c: REGISTRATIONS.get_entity_states(c, asked))
    assert found == {key_of(node(3), DOMAIN): rows[3], key_of(node(1), DOMAIN): rows[1]}


@pytest.mark.parametrize("number", [0, 1000])
async def test_the_smallest_and_the_largest_lookup(database: Database, number: int) -> None:
    """A lookup of nothing finds nothing, and one of a thousand finds a thousand."""
    rows = {key_of(node(each), DOMAIN): row(node(each)) for each in range(number)}
    await insert(database, rows.values())
    asked = keys_of(*(node(each) for each in range(number)))
    assert await database.read(lambda c: REGISTRATIONS.get_entity_states(c, asked)) == rows


def at_sequence(number: int) -> dict[str, Any]:
    """The columns of a row that stands at a sequence."""
    return {"last_applied_sequence": number, "last_applied_partition": None, "last_applied_offset": None}


def at_offset(partition: str, number: int) -> dict[str, Any]:
    """The columns of a row that stands at an offset of a partition."""
    return {"last_applied_sequence": None, "last_applied_partition": partition, "last_applied_offset": number}


# --- What a batch is folded onto -------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [False, True])
async def test_the_rows_of_a_batch(database: Database, *, lock: bool) -> None:
    """A batch gets the rows that there are, by key: an entity in one domain is not that in another."""
    rows = [row(node(1)), row(node(1), domain="other"), row(node(2)), row(node(3), domain="other")]
    await insert(database, rows)
    keys = [(node(1), "other"), (node(2), DOMAIN), (node(3), DOMAIN), (node(4), DOMAIN)]
    found = await database.write(lambda c: REGISTRATIONS.get_entity_states(c, keys, lock=lock))
    assert found == {key_of(node(1), "other"): rows[1], key_of(node(2), DOMAIN): rows[2]}
    assert await database.write(lambda c: REGISTRATIONS.get_entity_states(c, [], lock=lock)) == {}


async def waits_for_a_lock(database: Database) -> None:
    """Return when somebody waits for a row, soon or with TimeoutError."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(5):
        while await database.read(lambda c: c.fetchval(waiting)) == 0:  # noqa: ASYNC110 - who waits is in the server
            await asyncio.sleep(0.01)


async def test_locked_rows_make_others_wait(database: Database) -> None:
    """A second lock of a row waits, and then sees the first one's changes; a plain read does not wait."""
    await insert(database, [row(node(1))])
    keys: list[Name] = [(node(1), DOMAIN)]
    locked, go_on = asyncio.Event(), asyncio.Event()

    async def first(connection: Connection) -> None:
        (found,) = (await REGISTRATIONS.get_entity_states(connection, keys, lock=True)).values()
        locked.set()
        await go_on.wait()
        await REGISTRATIONS.upsert.save(connection, [Save(replace(found, version=2, node_type="storage"), found)])

    async with asyncio.timeout(10):
        writer = asyncio.create_task(database.write(first))
        await locked.wait()
        second = asyncio.create_task(database.write(lambda c: REGISTRATIONS.get_entity_states(c, keys, lock=True)))
        await waits_for_a_lock(database)
        plain = await database.write(lambda c: REGISTRATIONS.get_entity_states(c, keys, lock=False))
        assert plain[key_of(*keys[0])].version == 1
        assert not second.done()
        go_on.set()
        await writer
        assert (await second)[key_of(*keys[0])] == row(node(1), version=2, node_type="storage")


async def test_batches_that_share_rows_wait_for_each_other(database: Database) -> None:
    """Batches that lock the same rows, named in whatever order, all come through: no deadlock, no lost race."""
    rows = [row(node(number)) for number in range(20)]
    await insert(database, rows)
    shuffle = random.Random(7)

    async def batch(keys: list[Name]) -> None:
        async def work(connection: Connection) -> None:
            found = await REGISTRATIONS.get_entity_states(connection, keys, lock=True)
            saves = [Save(replace(each, version=each.version + 1), each) for each in found.values()]
            shuffle.shuffle(saves)
            await REGISTRATIONS.upsert.save(connection, saves)

        await database.write(work)

    batches = []
    for _ in range(24):
        keys = [(each.entity_id, DOMAIN) for each in rows]
        shuffle.shuffle(keys)
        batches.append(batch(keys[:12]))
    # No more at once than there are connections.
    for begin in range(0, len(batches), 4):
        async with asyncio.timeout(10):
            await asyncio.gather(*batches[begin : begin + 4])
    found = await database.read(lambda c: REGISTRATIONS.get_entity_states(c, keys_of(*(e.entity_id for e in rows))))
    assert sum(each.version - 1 for each in found.values()) == 24 * 12


# --- The guarded write -----------------------------------------------------------------------------------------


async def test_a_save_changes_every_column(database: Database) -> None:
    """An update writes each column but the key, to a value and back to null, and those of a tombstone as well."""
    sparse = row(FULL.entity_id, domain=FULL.domain)
    forget = event("registration.forgotten", 9, entity_id=FULL.entity_id, domain=FULL.domain)
    assert isinstance(forget, Forgotten)
    unchanged = {name for name, value in asdict(sparse).items() if value == getattr(FULL, name)}
    assert unchanged == {"entity_id", "domain", "forgotten_at", "forgotten_permanently"}
    await insert(database, [sparse])
    await update(database, FULL, sparse)
    assert await read(database, FULL.entity_id, FULL.domain) == FULL
    await update(database, sparse, FULL)
    assert await read(database, FULL.entity_id, FULL.domain) == sparse
    buried = tombstone(sparse, forget)
    await update(database, buried, sparse)
    assert await read(database, FULL.entity_id, FULL.domain) == buried
    await update(database, sparse, buried)
    assert await read(database, FULL.entity_id, FULL.domain) == sparse


async def test_a_save_of_nothing(database: Database) -> None:
    """An empty batch raises no error."""
    await insert(database, [])
    assert await database.read(lambda c: REGISTRATIONS.counts.count_by_state(c, DOMAIN)) == dict.fromkeys(S, 0)


async def test_known_and_new_rows_in_one_save(database: Database) -> None:
    """One save writes known rows, each by its own version, and new ones, and touches no other."""
    rows = [row(node(number), version=number + 1) for number in range(4)]
    await insert(database, rows[:3])
    saves = [
        Save(row(node(3)), None),
        Save(row(node(1), version=3, node_type="b"), rows[1]),
        Save(row(node(0), version=9, node_type="a"), rows[0]),
    ]
    await database.write(lambda c: REGISTRATIONS.upsert.save(c, saves))
    keys = keys_of(*map(node, range(4)))
    found = await database.read(lambda c: REGISTRATIONS.get_entity_states(c, keys))
    after = [
        row(node(0), version=9, node_type="a"),
        row(node(1), version=3, node_type="b"),
        rows[2],
        row(node(3)),
    ]
    assert found == {key_of(each.entity_id, DOMAIN): each for each in after}


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(Save(row(node(1), version=6), row(node(1), version=4)), id="the row has moved on"),
        pytest.param(Save(row(node(1), version=7), row(node(1), version=6)), id="the row was moved back"),
        pytest.param(Save(row(node(9), version=2), row(node(9))), id="the row is gone"),
        pytest.param(Save(row(node(1)), None), id="the row was inserted"),
    ],
)
@pytest.mark.parametrize("call", [Database.write, Database.write_alone], ids=["in a transaction", "alone"])
async def test_a_lost_race_undoes_the_batch(
    database: Database, call: Callable[[Database, Work[[], None]], Awaitable[None]], lost: Save
) -> None:
    """One row that is not as it was read undoes everything that the batch has written, in rows and in counts."""
    before = [row(node(1), version=5), row(node(2), version=5)]
    await insert(database, before)
    counters = await table(database, "registration_state_counts")
    moved = row(node(2), version=6, node_type="storage", current_state=S.REJECTED)
    saves = [Save(moved, before[1]), lost, Save(row(node(3)), None)]
    with pytest.raises(LostRaceError):
        await call(database, lambda c: REGISTRATIONS.upsert.save(c, saves))
    keys = keys_of(node(1), node(2), node(3), node(9))
    found = await database.read(lambda c: REGISTRATIONS.get_entity_states(c, keys))
    assert found == {key_of(each.entity_id, DOMAIN): each for each in before}
    assert await table(database, "registration_state_counts") == counters


@pytest.mark.parametrize("before", [None, row(node(1))], ids=["insert", "update"])
async def test_of_two_writers_one_loses(database: Database, before: Registration | None) -> None:
    """Of two transactions that write the same row the second waits for the first, and then has lost the race."""
    if before is not None:
        await insert(database, [before])
    first, second = row(node(1), version=2, node_type="first"), row(node(1), version=2, node_type="second")
    written, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(connection: Connection) -> None:
        await REGISTRATIONS.upsert.save(connection, [Save(first, before)])
        written.set()
        await go_on.wait()

    async with asyncio.timeout(10):
        winner = asyncio.create_task(database.write(slowly))
        await written.wait()
        loser = asyncio.create_task(database.write(lambda c: REGISTRATIONS.upsert.save(c, [Save(second, before)])))
        await waits_for_a_lock(database)
        go_on.set()
        await winner
        with pytest.raises(LostRaceError):
            await loser
    assert await read(database, node(1)) == first


async def test_a_writer_that_was_undone_wins_no_race(database: Database) -> None:
    """When the first of two transactions is rolled back, the second writes its row."""
    await insert(database, [row(node(1))])
    written, go_on = asyncio.Event(), asyncio.Event()

    async def given_up(connection: Connection) -> None:
        await REGISTRATIONS.upsert.save(connection, [Save(row(node(1), version=2, node_type="first"), row(node(1)))])
        written.set()
        await go_on.wait()
        raise KeyError("given up")

    second = row(node(1), version=2, node_type="second")
    async with asyncio.timeout(10):
        first = asyncio.create_task(database.write(given_up))
        await written.wait()
        writer = asyncio.create_task(update(database, second, row(node(1))))
        await waits_for_a_lock(database)
        go_on.set()
        with pytest.raises(KeyError):
            await first
        await writer
    assert await read(database, node(1)) == second


# --- Lists -----------------------------------------------------------------------------------------------------

CAPABILITIES: list[dict[str, object]] = [
    {},
    {"gpu": True},
    {"gpu": True, "tags": ["fast", "new"], "slots": {"a": 1}},
    {"gpu": False, "slots": {"a": 1, "b": 2}},
    {"größe": "XL"},
]
LISTED = [
    row(
        NIL if number == 0 else node(number),
        current_state=list(S)[number % 8],
        node_type=("compute", "storage")[number % 3 == 0],
        capabilities=CAPABILITIES[number % 5],
        last_applied_event_id=node(2_000_000 + number // 2),
        updated_at=minutes(number),
    )
    for number in range(120)
]
ELSEWHERE = [replace(each, domain="other") for each in LISTED[:40]]


def contains(value: object, part: object) -> bool:
    """Whether JSON contains JSON, as PostgreSQL's `@>` says."""
    if isinstance(part, dict):
        return isinstance(value, dict) and all(name in value and contains(value[name], part[name]) for name in part)
    if isinstance(part, list):
        return isinstance(value, list) and all(any(contains(one, each) for one in value) for each in part)
    return type(value) is type(part) and value == part


def expected(wanted: EntityFilter, after: UUID | None = None) -> list[Registration]:
    """What a list has, worked out without SQL."""
    return sorted(
        (
            each
            for each in [*LISTED, *ELSEWHERE]
            if each.domain == wanted.domain
            and (not wanted.states or each.current_state in wanted.states)
            and (wanted.node_type is None or each.node_type == wanted.node_type)
            and (wanted.capabilities is None or contains(each.capabilities, wanted.capabilities))
            and (wanted.event_id is None or each.last_applied_event_id == wanted.event_id)
            and (wanted.updated_before is None or each.updated_at < wanted.updated_before)
            and (after is None or each.entity_id > after)
        ),
        key=lambda each: each.entity_id,
    )


def wanted(**conditions: Any) -> EntityFilter:
    """A filter of the usual domain."""
    return EntityFilter(**{"domain": DOMAIN, **conditions})


FILTERS = [
    wanted(),
    wanted(domain="other"),
    wanted(domain="none"),
    wanted(states=(S.ACTIVE,)),
    wanted(states=(S.PENDING_REGISTRATION,)),  # the nil UUID among them
    wanted(states=(S.REJECTED, S.ACCEPTED)),
    wanted(states=(S.ACTIVE, S.ACTIVE)),
    wanted(states=tuple(S)),
    wanted(node_type="storage"),
    wanted(node_type="nothing"),
    wanted(updated_before=minutes(50)),
    wanted(updated_before=START),
    wanted(capabilities={}),
    wanted(capabilities={"gpu": True}),
    wanted(capabilities={"gpu": True, "tags": ["new"]}),
    wanted(capabilities={"slots": {"a": 1}}),
    wanted(capabilities={"slots": {}}),
    wanted(capabilities={"größe": "XL"}),
    wanted(capabilities={"gpu": "true"}),
    wanted(event_id=node(2_000_003)),
    wanted(event_id=node(5)),
    wanted(states=(S.ACTIVE, S.ACK_RECEIVED), node_type="compute"),
    wanted(states=(S.ACTIVE,), capabilities={"gpu": True}),
    wanted(states=(S.ACTIVE, S.ACCEPTED), capabilities={"gpu": True}),
    wanted(states=(S.AWAITING_ACK,), event_id=node(2_000_001)),
    wanted(states=(S.ACTIVE,), event_id=node(2_000_001)),
    wanted(node_type="storage", updated_before=minutes(50)),
    wanted(node_type="storage", capabilities={"slots": {"a": 1}}, updated_before=minutes(100)),
    wanted(event_id=node(2_000_001), capabilities={"gpu": True}),
    wanted(
        domain="other",
        states=(S.AWAITING_ACK, S.ACTIVE),
        node_type="compute",
        capabilities={"gpu": True},
        event_id=node(2_000_001),
        updated_before=minutes(50),
    ),
]


def named(value: object) -> str:
    """A filter in few words."""
    conditions = asdict(value).items() if isinstance(value, EntityFilter) else ()
    return " ".join(f"{name}={condition}" for name, condition in conditions if condition)


@pytest.mark.parametrize("wanted", FILTERS, ids=named)
async def test_a_list_has_what_it_says(database: Database, wanted: EntityFilter) -> None:
    """Each filter gives exactly the rows that it lets through, in the order of entity ids, from any place on."""
    await insert(database, LISTED + ELSEWHERE)
    everything = sorted(each.entity_id for each in LISTED)
    for after in (None, NIL, everything[60], everything[-1], UUID(int=2**128 - 1)):
        found = await database.read(
            lambda c, after=after: listing.get_by_state(c, wanted, after=after, limit=1000)  # type: ignore[misc]
        )
        assert found == (expected(wanted, after), False)


@pytest.mark.parametrize("limit", [1, 7, 40])
@pytest.mark.parametrize(
    "wanted",
    [wanted(), wanted(states=(S.ACTIVE, S.PENDING_REGISTRATION)), wanted(capabilities={"gpu": True})],
    ids=named,
)
async def test_pages_give_each_row_once(database: Database, wanted: EntityFilter, limit: int) -> None:
    """Page by page a list gives each row once, the one with the nil UUID first, and no page is too long."""
    await insert(database, LISTED + ELSEWHERE)

    async def page(after: UUID | None) -> tuple[list[Registration], bool]:
        return await database.read(lambda c: listing.get_by_state(c, wanted, after=after, limit=limit))

    found: list[Registration] = []
    more = True
    while more:
        rows, more = await page(found[-1].entity_id if found else None)
        assert len(rows) == limit or not more
        found += rows
        assert len(found) <= len(LISTED)
    assert found == expected(wanted)


async def test_a_list_is_in_order_without_an_index(database: Database) -> None:
    """The order of a list is asked for, not a gift of the index that is read."""
    await insert(database, [row(node(number), current_state=list(S)[number % 8]) for number in range(50)])

    async def work(connection: Connection) -> list[UUID]:
        await without_indexes(connection)
        found, _ = await listing.get_by_state(connection, wanted(), after=None, limit=50)
        return [each.entity_id for each in found]

    assert await database.write(work) == sorted(map(node, range(50)))


# --- Counts ----------------------------------------------------------------------------------------------------


async def test_counts_name_all_states(database: Database) -> None:
    """A count has a number for each of the eight states, in order, of only its own domain."""
    await insert(
        database,
        [
            *(row(node(number), current_state=S.ACTIVE) for number in range(3)),
            row(node(3), current_state=S.REJECTED),
            row(node(4), current_state=S.ACCEPTED, domain="other"),
        ],
    )
    counts = await database.read(lambda c: REGISTRATIONS.counts.count_by_state(c, DOMAIN))
    assert counts == dict.fromkeys(S, 0) | {S.ACTIVE: 3, S.REJECTED: 1}
    assert list(counts) == list(S)
    assert len(counts) == 8
    other = await database.read(lambda c: REGISTRATIONS.counts.count_by_state(c, "other"))
    assert other == dict.fromkeys(S, 0) | {S.ACCEPTED: 1}


# --- Overdue scans ---------------------------------------------------------------------------------------------

Scan = Callable[..., Awaitable[Overdue]]
# The scan, the column of its deadline, that of its marker, and the states that it looks at.
SCANS: list[tuple[Scan, str, str, set[RegistrationState]]] = [
    (
        REGISTRATIONS.overdue[Deadline.ACK].get_overdue,
        "ack_deadline",
        "ack_timeout_emitted_at",
        {S.ACCEPTED, S.AWAITING_ACK},
    ),
    (
        REGISTRATIONS.overdue[Deadline.LIVENESS].get_overdue,
        "liveness_deadline",
        "liveness_timeout_emitted_at",
        {S.ACTIVE},
    ),
]
each_scan = pytest.mark.parametrize(("scan", "deadline", "marker", "states"), SCANS, ids=["ack", "liveness"])


async def overdue(
    database: Database, scan: Scan, as_of: datetime, *, after: DueKey | None = None, limit: int = 1000
) -> Overdue:
    """A page of a scan."""
    return await database.read(lambda c: scan(c, DOMAIN, as_of=as_of, after=after, limit=limit))


@each_scan
async def test_which_states_are_overdue(
    database: Database, scan: Scan, deadline: str, marker: str, states: set[RegistrationState]
) -> None:
    """A passed deadline counts in the states that wait for it, and in no other."""
    await insert(database, [row(node(n), current_state=state, **{deadline: START}) for n, state in enumerate(S)])
    found = await overdue(database, scan, minutes(1))
    assert {each.current_state for each in found.items} == states
    assert len(found.items) == len(states)
    assert found.next_deadline is None
    assert marker not in {name for name in Registration.__struct_fields__ if getattr(found.items[0], name)}


@each_scan
async def test_a_deadline_at_the_moment_is_not_overdue(
    database: Database, scan: Scan, deadline: str, marker: str, states: set[RegistrationState]
) -> None:
    """A deadline at `as_of` itself is the next one, a microsecond later it is overdue."""
    state = min(states)
    await insert(database, [row(node(1), current_state=state, **{deadline: START, marker: None})])
    assert await overdue(database, scan, START) == Overdue([], START)
    later = await overdue(database, scan, START + timedelta(microseconds=1))
    assert [each.entity_id for each in later.items] == [node(1)]
    assert later.next_deadline is None


@each_scan
async def test_what_is_left_out(
    database: Database, scan: Scan, deadline: str, marker: str, states: set[RegistrationState]
) -> None:
    """A row whose time-out is out, whenever that was, without a deadline, or in another domain is neither overdue nor
    next."""
    state = min(states)
    other = {"ack_deadline", "liveness_deadline"} - {deadline}
    other_marker = {"ack_timeout_emitted_at", "liveness_timeout_emitted_at"} - {marker}
    await insert(
        database,
        [
            row(node(1), current_state=state, **{deadline: START, marker: START}),
            row(node(2), current_state=state, **{deadline: START, marker: minutes(1000)}),
            row(node(3), current_state=state, **{deadline: minutes(20), marker: START}),
            row(node(4), current_state=state),
            row(node(5), current_state=state, **dict.fromkeys(other, START)),
            row(node(6), current_state=state, domain="other", **{deadline: START}),
            row(node(7), current_state=state, **{deadline: START}, **dict.fromkeys(other_marker, START)),
        ],
    )
    found = await overdue(database, scan, minutes(10))
    assert [each.entity_id for each in found.items] == [node(7)]
    assert found.next_deadline is None


@each_scan
async def test_the_order_and_the_pages_of_a_scan(
    database: Database, scan: Scan, deadline: str, marker: str, states: set[RegistrationState]
) -> None:
    """The oldest deadline comes first, equal ones by entity id, and pages of any size give each row once."""
    rows = [
        row(
            NIL if n == 0 else node(n),
            current_state=sorted(states)[n % len(states)],
            **{deadline: minutes(n % 4), marker: None},
        )
        for n in range(30)
    ]
    await insert(database, [*rows, *(replace(each, domain="other") for each in rows)])
    due = sorted(
        (each for each in rows if getattr(each, deadline) < minutes(3)),
        key=lambda each: (getattr(each, deadline), each.entity_id),
    )
    for limit in (1, 4, 30):
        found: list[Registration] = []
        after: DueKey | None = None
        while (page := await overdue(database, scan, minutes(3), after=after, limit=limit)).items:
            assert page.next_deadline == minutes(3)
            assert len(page.items) <= limit
            found += page.items
            assert len(found) <= len(rows)
            after = (getattr(found[-1], deadline), found[-1].entity_id)
        assert found == due


@each_scan
async def test_a_scan_is_in_order_without_an_index(
    database: Database, scan: Scan, deadline: str, marker: str, states: set[RegistrationState]
) -> None:
    """Equal deadlines come in the order of entity ids, with any index."""
    state = min(states)
    await insert(database, [row(node(n), current_state=state, **{deadline: START, marker: None}) for n in range(50)])
    # By insertion the rows lie in the order of their keys; so every second one moves to the end of the table.
    for number in range(0, 50, 2):
        read = row(node(number), current_state=state, **{deadline: START, marker: None})
        await update(database, replace(read, version=2), read)

    async def work(connection: Connection) -> list[UUID]:
        await without_indexes(connection)
        found = await scan(connection, DOMAIN, as_of=minutes(1), after=None, limit=50)
        return [each.entity_id for each in found.items]

    assert await database.write(work) == sorted(map(node, range(50)))


@each_scan
async def test_the_next_deadline(
    database: Database, scan: Scan, deadline: str, marker: str, states: set[RegistrationState]
) -> None:
    """The next deadline is the earliest to come, whatever page is asked for, and None when there is none."""
    state = max(states)
    assert (await overdue(database, scan, START)).next_deadline is None
    await insert(
        database,
        [row(node(n), current_state=state, **{deadline: minutes(n), marker: None}) for n in (9, 2, 5, 7)],
    )
    assert (await overdue(database, scan, START)).next_deadline == minutes(2)
    assert (await overdue(database, scan, minutes(3), limit=1)).next_deadline == minutes(5)
    assert (await overdue(database, scan, minutes(6), after=(minutes(5), node(5)))).next_deadline == minutes(7)
    assert (await overdue(database, scan, minutes(10))).next_deadline is None


# --- By hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stands_at", [at_sequence(5), at_offset("p", 5)], ids=["from sequence", "from offset"])
@pytest.mark.parametrize(
    ("position", "moved"),
    [
        (Position(sequence=0), at_sequence(0)),
        (Position(sequence=MAX_NUMBER), at_sequence(MAX_NUMBER)),
        (Position(partition="q", offset=3), at_offset("q", 3)),
    ],
    ids=str,
)
async def test_rebase(
    database: Database, stands_at: dict[str, Any], position: Position, moved: dict[str, Any]
) -> None:
    """A rebase changes the position, onto either track, and the version by one; nothing else, and no other row."""
    before = replace(FULL, domain=DOMAIN, version=7, **stands_at)
    others = [replace(before, entity_id=node(99)), replace(before, domain="other")]
    await insert(database, [before, *others])
    answer = await database.write(lambda c: REGISTRATIONS.rebase(c, before.entity_id, DOMAIN, position))
    after = replace(before, version=8, **moved)
    assert answer == (before, after)
    assert after.position == position
    assert await read(database, before.entity_id) == after
    assert await read(database, node(99)) == others[0]
    assert await read(database, before.entity_id, "other") == others[1]


async def test_rebase_without_a_row(database: Database) -> None:
    """A rebase of an entity that has no row says None, and makes none."""
    answer = await database.write(lambda c: REGISTRATIONS.rebase(c, node(1), DOMAIN, Position(sequence=1)))
    assert answer is None
    assert await read(database, node(1)) is None


async def test_rebase_waits_for_a_writer(database: Database) -> None:
    """A rebase in the middle of somebody's write starts from what that has written."""
    await insert(database, [row(node(1))])
    written, go_on = asyncio.Event(), asyncio.Event()

    async def write(connection: Connection) -> None:
        await REGISTRATIONS.upsert.save(
            connection, [Save(row(node(1), version=2, node_type="storage"), row(node(1)))]
        )
        written.set()
        await go_on.wait()

    async with asyncio.timeout(10):
        writer = asyncio.create_task(database.write(write))
        await written.wait()
        rebase = asyncio.create_task(
            database.write(lambda c: REGISTRATIONS.rebase(c, node(1), DOMAIN, Position(sequence=9)))
        )
        await waits_for_a_lock(database)
        go_on.set()
        await writer
        answer = await rebase
    assert answer is not None
    assert answer[0] == row(node(1), version=2, node_type="storage")
    assert answer[1] == row(node(1), version=3, node_type="storage", last_applied_sequence=9)
