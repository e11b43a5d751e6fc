"""Whether a client is still there: a call that takes long ends with it."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

from fastapi import Request
from starlette.types import Message, Receive, Scope

from app.errors import UnavailableError

T = TypeVar("T")


async def while_there(request: Request, answer: Awaitable[T]) -> T:
    """The answer, unless the client disconnects: then nobody waits for it any more."""
    asking = asyncio.ensure_future(answer)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise UnavailableError("the client has disconnected")
        return asking.result()
    finally:
        for task in (asking, leaving):
            task.cancel()
        await asyncio.wait([asking, leaving])


async def _left(request: Request) -> None:
    """Return when the client has disconnected, or sends no more."""
    while (await message_of(request.scope, request.receive))["type"] != "http.disconnect":
        pass


async def message_of(scope: Scope, receive: Receive) -> Message:
    """The next message. A client that sends no more counts as gone: the end of its connection looks the same."""
    ended: asyncio.Event | None = scope.get("extensions", {}).get("pqs.client_ended")
    if ended is None:
        return await receive()
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(receive()), asyncio.ensure_future(ended.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return cast("Message", tasks[0].result()) if tasks[0].done() else {"type": "http.disconnect"}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
