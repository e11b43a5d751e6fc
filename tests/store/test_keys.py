"""Keys in the database: which are live, the notification of a change, and the plans of the statements."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from msgspec.structs import replace

from app.store import keys
from app.store.database import Connection, Database
from app.store.keys import CHANNEL, StoredKey
from app.store.notifications import listening
from app.store.statements import Statement

PATIENCE = 30.0  # seconds; only a test that fails waits that long
FAR = datetime(2199, 1, 1, tzinfo=UTC)
KEY = StoredKey(
    id="aaaaaaaaaa",
    name="orchestrator",
    scopes=("events:write", "entities:read"),
    domains=("registration",),
    workflow_prefixes=("team/",),
    rate=10.0,
    burst=20.0,
    created_by="cli:me",
    expires_at=FAR,
)


def digest(number: int) -> bytes:
    """An arbitrary digest."""
    return bytes([number]) * 32


async def changed(database: Database, work: Callable[[Connection], Awaitable[None]]) -> None:
    """Change keys in one transaction."""

    async def do(connection: Connection) -> None:
        await keys.change(connection)
        await work(connection)

    await database.write(do)


async def added(database: Database, key: StoredKey, number: int = 1) -> None:
    """One more key."""
    await changed(database, lambda connection: keys.add(connection, key, digest(number)))


async def test_a_key_is_read_back(database: Database) -> None:
    """A key is read back with everything it was given, under the digest of its secret."""
    assert await database.read(keys.get_live) == keys.Keys(0, {})
    await added(database, KEY)
    live = await database.read(keys.get_live)
    stored = live.by_digest[digest(1)]
    assert stored.created_at is not None
    assert replace(stored, created_at=None) == KEY
    assert live.revision == await database.read(keys.get_revision) == 1


async def test_what_is_over_is_not_live(database: Database) -> None:
    """Revoked and expired keys are in the list, and are not live."""
    await added(database, KEY, 1)
    await added(database, replace(KEY, id="bbbbbbbbbb"), 2)
    await added(database, replace(KEY, id="cccccccccc", expires_at=datetime.now(UTC) - timedelta(seconds=1)), 3)
    await changed(database, lambda connection: keys.revoke(connection, ["bbbbbbbbbb"]))
    assert list((await database.read(keys.get_live)).by_digest) == [digest(1)]
    assert [key.id for key in await database.read(keys.get_named, "orchestrator")] == ["aaaaaaaaaa"]
    assert await database.read(keys.get_named, "bbbbbbbbbb") == []
    listed = await database.read(keys.get_all)
    assert [(key.id, key.revoked_at is None) for key in listed] == [
        ("aaaaaaaaaa", True),
        ("bbbbbbbbbb", False),
        ("cccccccccc", True),
    ]


async def test_an_end_is_only_brought_forward(database: Database) -> None:
    """A revocation never postpones the end of a key."""
    soon = datetime.now(UTC) + timedelta(days=1)
    await added(database, KEY, 1)
    await changed(database, lambda connection: keys.shorten(connection, [KEY.id], soon))
    await changed(database, lambda connection: keys.shorten(connection, [KEY.id], FAR))
    assert [key.expires_at for key in await database.read(keys.get_all)] == [soon]


async def test_the_day_of_use_is_noted_once_a_day(database: Database) -> None:
    """The day of use is the database's day, and does not count as a change of keys."""
    await added(database, KEY)
    await database.write(keys.note_use, {KEY.id, "unknownkey"})
    [first] = await database.read(keys.get_all)
    assert first.last_used_on == datetime.now(UTC).date()
    assert await database.read(keys.get_revision) == 1

    async def version(connection: Connection) -> str:
        return str(await connection.fetchval("SELECT xmin FROM api_keys"))

    before = await database.read(version)
    await database.write(keys.note_use, {KEY.id})
    assert await database.read(version) == before


async def test_a_change_is_told_at_its_commit(database: Database, database_url: str) -> None:
    """A commit notifies listeners of the change; a rolled back change notifies nobody and keeps the revision."""
    heard = asyncio.Event()
    async with listening(database_url, CHANNEL, heard.set, patience=timedelta(seconds=5)) as connection:

        async def fail(_: Connection) -> None:
            raise ArithmeticError

        with pytest.raises(ArithmeticError):
            await changed(database, fail)
        assert await keys.get_revision(connection) == 0
        assert not heard.is_set()
        await added(database, KEY)
        async with asyncio.timeout(PATIENCE):
            await heard.wait()
        assert await keys.get_revision(connection) == 1


async def test_changes_go_one_after_the_other(database: Database) -> None:
    """Concurrent changes of keys run one after the other, so each sees all changes before it."""
    found: list[int] = []

    async def make(number: int) -> None:
        async def work(connection: Connection) -> None:
            found.append(len(await keys.get_named(connection, "orchestrator")))
            await keys.add(connection, replace(KEY, id=f"{number:010}"), digest(number))

        await changed(database, work)

    await asyncio.gather(*(make(number) for number in range(8)))
    assert sorted(found) == list(range(8))
    assert await database.read(keys.get_revision) == 8


@pytest.mark.parametrize(
    ("constraint", "wrong"),
    [("limits_positive", {"rate": 0.0}), ("limits_positive", {"burst": 0.5}), ("digest_of_sha256", None)],
    ids=str,
)
async def test_what_a_check_refuses(database_url: str, constraint: str, wrong: dict[str, float] | None) -> None:
    """A digest of the wrong form and a limit that allows no call are refused."""
    connection = await asyncpg.connect(database_url)
    try:
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await keys.add(
                connection,  # type: ignore[arg-type]  # a plain connection does it too
                replace(KEY, **wrong) if wrong else KEY,
                digest(1) if wrong else b"x",
            )
        assert refused.value.constraint_name == f"api_keys_{constraint}"
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("statement", "given"),
    [
        (keys.USED, {"ids": ["a"]}),
        (keys.REVOKE, {"ids": ["a"]}),
        (keys.SHORTEN, {"ids": ["a"], "expires_at": FAR}),
    ],
)
async def test_a_key_is_found_by_its_id(database: Database, statement: Statement, given: dict[str, object]) -> None:
    """A key is found by the primary key, however many old keys there are."""

    async def plan(connection: Connection) -> str:
        rows = await connection.fetch(f"EXPLAIN {statement.text}", *statement.arguments(given))
        return "\n".join(row[0] for row in rows)

    assert "using api_keys_pkey" in await database.read(plan)
