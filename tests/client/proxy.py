"""A TCP proxy that breaks connections on request."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PIECE = 64 * 1024  # bytes


class Proxy:
    """Passes bytes between clients and `target`, the address of a service, which may be changed.

    A connection carries one request at a time, so the first bytes in a direction belong to a request or an answer.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.cut_requests = 0  # of the next requests: the connection is reset before the service sees any of it
        self.lose_answers = 0  # of the next answers: the connection is reset once the service has answered
        self.hold_answers = 0  # of the next answers: none of it is passed on, and the connection stays open
        self.break_after: int | None = None  # the bytes of the next answer after which the connection is reset
        self.requests = 0  # pieces that came from clients
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.CancelledError):  # of __aexit__
            await self._join(reader, writer)
        self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = urlsplit(self.target)
        try:
            from_service, to_service = await asyncio.open_connection(address.hostname, address.port)
        except OSError:
            writer.transport.abort()
            return
        held = False

        def passes_answer(piece: bytes) -> bytes | None:
            nonlocal held
            if self.hold_answers and not held:
                self.hold_answers -= 1
                held = True
            return b"" if held else self._passes_answer(piece)

        pumps = [
            asyncio.create_task(_pump(reader, to_service, self._passes_request)),
            asyncio.create_task(_pump(from_service, writer, passes_answer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, to_service):
                end.transport.abort()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _passes_request(self, piece: bytes) -> bytes | None:
        self.requests += 1
        if self.cut_requests:
            self.cut_requests -= 1
            return None
        return piece

    def _passes_answer(self, piece: bytes) -> bytes | None:
        if self.lose_answers:
            self.lose_answers -= 1
            return None
        if self.break_after is not None:
            if self.break_after <= 0:
                self.break_after = None
                return None
            piece = piece[: self.break_after]
            self.break_after -= len(piece)
        return piece


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: Callable[[bytes], bytes | None]
) -> None:
    """Pass bytes on until `passes` returns None, or either side disconnects."""
    with suppress(ConnectionError):
        while piece := await reader.read(PIECE):
            passed = passes(piece)
            if passed is None:
                return
            writer.write(passed)
            await writer.drain()
