"""A connection of its own that listens: for work that follows what others have committed."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import cast

import asyncpg

from app.store.database import Connection, translated
from app.store.failures import BROKEN
from app.store.schema import libpq_address

GOODBYE = 1.0  # seconds that the server has to hear that the connection ends


@asynccontextmanager
async def listening(
    url: str, channel: str, heard: Callable[[], None], *, patience: timedelta
) -> AsyncIterator[Connection]:
    """A connection outside of every pool and breaker, on which `heard` is called for each notification.

    Each step on it may take `patience`. A notification may get lost, by a pooler between or with a connection that
    breaks: so whoever needs to know looks as well. Raises DatabaseDownError and its kin.
    """
    seconds = patience.total_seconds()

    def note(*_: object) -> None:
        heard()

    with translated():
        connection = await asyncpg.connect(
            libpq_address(url),
            timeout=seconds,
            command_timeout=seconds,
            server_settings={"application_name": "pqs keys", "timezone": "UTC"},
        )
        try:
            await connection.add_listener(channel, note)
            yield cast("Connection", connection)
        finally:
            with suppress(*BROKEN):
                await connection.close(timeout=GOODBYE)
