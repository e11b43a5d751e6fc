"""Many connections that each wait for an answer, with almost no work of their own when it arrives."""

import asyncio
import time
from collections.abc import Callable
from typing import cast

import uvloop

from benchmarks.machine import BenchmarkError

AT_ONCE = 100  # connections that are opened at once
ADDRESSES = [f"127.0.0.{n}" for n in range(1, 5)]  # one may have a quarter of the connections of a process
OPEN_TIMEOUT = 60.0  # seconds

run = uvloop.run


class _Member(asyncio.Protocol):
    """A connection that records when the first byte of an answer arrived."""

    def __init__(self) -> None:
        self._forget()
        self.on_data: Callable[[bytes, float], None] = self._on_first
        self.transport: asyncio.Transport | None = None

    def _forget(self) -> None:
        self.answered: asyncio.Future[tuple[float, bytes]] = asyncio.get_running_loop().create_future()
        self._at = 0.0
        self._received = b""

    def send(self, request: bytes) -> None:
        """Send a request, and forget earlier answers."""
        self._forget()
        if self.transport is not None:
            self.transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the open connection."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Record a piece of an answer."""
        self.on_data(data, time.time())

    def connection_lost(self, _error: Exception | None) -> None:
        """Note that the connection is closed."""
        if not self.answered.done():
            self.answered.set_exception(BenchmarkError("a waiting connection was closed"))

    def _on_first(self, data: bytes, at: float) -> None:
        self._at = self._at or at
        self._received += data
        if b"\r\n\r\n" in self._received and not self.answered.done():
            self.answered.set_result((self._at, self._received))


class Herd:
    """The connections to one port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.members: list[_Member] = []

    async def open(self, count: int, request: bytes | None = None) -> None:
        """Open so many more connections; each sends the request at once, as the service closes idle ones."""
        loop = asyncio.get_running_loop()
        while count > 0:
            some = min(AT_ONCE, count)
            made = await asyncio.wait_for(
                asyncio.gather(
                    *(
                        loop.create_connection(
                            _Member, "127.0.0.1", self._port, local_addr=(ADDRESSES[n % len(ADDRESSES)], 0)
                        )
                        for n in range(some)
                    )
                ),
                OPEN_TIMEOUT,
            )
            for _, member in made:
                self.members.append(member)
                if request is not None:
                    member.send(request)
            count -= some

    def send(self, request: bytes) -> None:
        """Send a request on each connection, and forget the answers to earlier ones."""
        for member in self.members:
            member.send(request)

    async def answers(self, within: float) -> list[tuple[float, bytes]]:
        """The time of each answer, in seconds since 1970, and its content; all must arrive within these seconds."""
        try:
            return list(await asyncio.wait_for(asyncio.gather(*(each.answered for each in self.members)), within))
        except TimeoutError:
            left = sum(not each.answered.done() for each in self.members)
            raise BenchmarkError(f"{left} of {len(self.members)} waits were not answered in {within:.0f} s") from None

    def close(self) -> None:
        """Close all connections."""
        for member in self.members:
            member.answered.cancel()
            if member.transport is not None:
                member.transport.abort()


def get(path: str, *headers: str) -> bytes:
    """A GET request in bytes."""
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
