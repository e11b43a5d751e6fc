"""A connection of its own that listens: for work that follows what others have committed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import cast

from app.store import sessions
from app.store.database import BROKEN, Connection
from app.store.failures import translated

SETTINGS = {"application_name": "pqs keys", "timezone": "UTC", "idle_session_timeout": "0"}
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
        async with asyncio.timeout(seconds):
            connection = await sessions.opened(url, SETTINGS, command_timeout=seconds)
        try:
            await connection.add_listener(channel, note)
            yield cast("Connection", connection)
        finally:
            with suppress(*BROKEN):
                await connection.close(timeout=GOODBYE)
