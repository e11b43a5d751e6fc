"""Keys in memory: the delay of a change, the cost of an unknown key, and the copy's validity without the database."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from app.access.cache import KeyCache
from app.access.principals import Scope
from app.errors import UnavailableError
from app.store import keys
from app.store.database import Connection, Database
from app.store.notifications import listening
from tests.access.making import PATIENCE, change, new_key, running

REVOKED_WITHIN = 5.0  # seconds, the promise


async def until(condition: Callable[[], bool]) -> float:
    """Wait for a condition; returns the seconds it took."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def test_a_key_is_known_with_its_grant(database: Database, database_url: str) -> None:
    """A cached key has its scopes, domains, prefixes, limits and expiry; scopes unknown to us are left out."""
    key = await new_key(database, "orchestrator")
    cache = KeyCache(database_url)
    await cache.refresh()
    held = cache.find(key.digest)
    assert held is not None
    assert held.id == key.id.encode()
    principal = held.principal
    assert (principal.name, principal.rate, principal.burst) == (f"key:orchestrator/{key.id}", 5, 7)
    assert principal.grant.scopes == {Scope.ENTITIES_READ}
    assert principal.grant.domains == {"registration"}
    assert principal.grant.prefixes == ("team/",)
    assert held.expires_at == pytest.approx((datetime.now(UTC) + timedelta(days=1)).timestamp(), abs=60)


@pytest.mark.parametrize("notified", [True, False], ids=["by NOTIFY", "by looking"])
async def test_a_revocation_holds_everywhere(
    database: Database, database_url: str, notified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two caches on one database, as two hosts have them, learn of a new key and of its end within five seconds."""
    if not notified:  # as behind a pooler, which hands no notification on
        monkeypatch.setattr("app.access.cache.listening", deaf)
    caches = [KeyCache(database_url, poll=timedelta(hours=1) if notified else timedelta(seconds=2)) for _ in range(2)]
    async with running(caches[0]), running(caches[1]):
        for cache in caches:
            await until(lambda cache=cache: known(cache))  # type: ignore[misc]  # mypy has no types for defaults
        # With NOTIFY the hour between two looks does not matter; without it, the looks alone have to do.
        key = await new_key(database)
        await until(lambda: all(cache.find(key.digest) is not None for cache in caches))
        await change(database, lambda connection: keys.revoke(connection, [key.id]))
        took = await until(lambda: all(cache.find(key.digest) is None for cache in caches))
    assert took < REVOKED_WITHIN


def deaf(
    url: str, channel: str, heard: Callable[[], None], *, patience: timedelta
) -> AbstractAsyncContextManager[Connection]:
    """A connection that receives no notifications about keys."""
    return listening(url, f"not_{channel}", heard, patience=patience)


def known(cache: KeyCache) -> bool:
    """Whether the cache has read its database."""
    try:
        cache.find(b"")
    except UnavailableError:
        return False
    return True


async def test_an_unknown_key_asks_nobody(database: Database, database_url: str) -> None:
    """Lookups of thousands of unknown keys execute no SQL statement."""
    cache = KeyCache(database_url)
    await cache.refresh()
    statements = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"

    async def transactions() -> int:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            return int(await connection.fetchval(statements))
        finally:
            await connection.close()

    await transactions()
    one = await transactions()
    two = await transactions()
    for number in range(10_000):
        assert cache.find(number.to_bytes(32)) is None
    assert await transactions() - two == two - one


async def test_without_the_database_the_last_copy_counts_for_a_minute(database: Database, database_url: str) -> None:
    """After a minute without the database the validity of a key is unknown; the error says so and refuses no key."""
    now = [1000.0]
    key = await new_key(database)
    cache = KeyCache(database_url, clock=lambda: now[0])
    with pytest.raises(UnavailableError, match=r"^keys cannot be checked: the database does not answer$"):
        cache.find(key.digest)
    await cache.refresh()
    now[0] += 60
    assert cache.find(key.digest) is not None
    now[0] += 0.1
    with pytest.raises(UnavailableError):
        cache.find(key.digest)
    await cache.refresh()
    assert cache.find(key.digest) is not None


async def test_a_broken_connection_is_made_anew(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After its connection breaks, the cache logs it once, keeps its copy meanwhile, and follows again."""
    caplog.set_level(logging.INFO, "app.access.cache")
    key = await new_key(database)
    async with running(KeyCache(database_url, poll=timedelta(milliseconds=20))) as cache:
        await until(lambda: known(cache) and cache.find(key.digest) is not None)
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pqs keys' AND datname = current_database()"  # noqa: E501
        await database.write_alone(lambda connection: connection.execute(end))
        await until(lambda: "keys cannot be read" in caplog.text)
        assert cache.find(key.digest) is not None
        await change(database, lambda connection: keys.revoke(connection, [key.id]))
        await until(lambda: cache.find(key.digest) is None)
        await until(lambda: "keys are read again" in caplog.text)
    assert caplog.text.count("keys cannot be read") == 1


async def test_after_a_failover_keys_are_read_anew(database: Database, database_url: str) -> None:
    """After a failover keys are read anew, even at the same revision: the database may have lost commits."""
    key = await new_key(database)
    async with running(KeyCache(database_url, poll=timedelta(milliseconds=20))) as cache:
        await until(lambda: known(cache) and cache.find(key.digest) is not None)
        await database.write(keys.revoke, [key.id])  # without a change of the revision
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pqs keys' AND datname = current_database()"  # noqa: E501
        await database.write_alone(lambda connection: connection.execute(end))
        await until(lambda: cache.find(key.digest) is None)


async def test_a_database_that_is_not_there_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """The cache starts without a database, then knows no key, and logs no password."""
    caplog.set_level(logging.INFO)
    async with running(KeyCache("postgresql://u:hunter2@127.0.0.1:1/nowhere")) as cache:
        await until(lambda: "keys cannot be read" in caplog.text)
        assert not known(cache)
    assert "hunter2" not in caplog.text


async def test_the_day_of_use_is_noted(database: Database, database_url: str) -> None:
    """The day of the last use is stored for keys that were used, at the latest when the cache stops."""
    used, unused = await new_key(database, "used"), await new_key(database, "unused")
    async with running(KeyCache(database_url)) as cache:
        await until(lambda: known(cache) and cache.find(used.digest) is not None)
        held = cache.find(used.digest)
        assert held is not None
        held.used = True
        another = await new_key(database, "another")
        await until(lambda: cache.find(another.digest) is not None)
    days = {key.id: key.last_used_on for key in await database.read(keys.get_all)}
    assert days[used.id] == datetime.now(UTC).date()
    assert days[unused.id] is None
