"""Builders shared by the tests of access."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from app.access.cache import KeyCache
from app.access.keys import AccessKey, make
from app.store import keys
from app.store.database import Connection, Database
from app.store.keys import StoredKey

PATIENCE = 30.0  # seconds; only a test that fails waits that long


async def new_key(
    database: Database,
    name: str = "tester",
    *,
    lasts: timedelta = timedelta(days=1),
    scopes: Sequence[str] = ("entities:read", "a scope of later"),
    domains: Sequence[str] = ("registration",),
    prefixes: Sequence[str] = ("team/",),
    rate: float | None = 5.0,
    burst: float | None = 7.0,
) -> AccessKey:
    """A valid key, by default with the right to read the entities of one domain."""
    key = make(os.urandom)
    stored = StoredKey(
        id=key.id,
        name=name,
        scopes=tuple(scopes),
        domains=tuple(domains),
        workflow_prefixes=tuple(prefixes),
        rate=rate,
        burst=burst,
        created_by="test",
        expires_at=datetime.now(UTC) + lasts,
    )
    await change(database, lambda connection: keys.add(connection, stored, key.digest))
    return key


async def change(database: Database, work: Callable[[Connection], Awaitable[None]]) -> None:
    """Change keys in one transaction."""

    async def do(connection: Connection) -> None:
        await keys.change(connection)
        await work(connection)

    await database.write(do)


@asynccontextmanager
async def running(cache: KeyCache) -> AsyncIterator[KeyCache]:
    """The cache while it follows its database."""
    stop = asyncio.Event()
    task = asyncio.create_task(cache.run(stop))
    try:
        yield cache
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE):
            await task
