"""A TCP proxy in a process of its own, which cuts, refuses, stalls, delays and narrows connections on request.

As a program, `python -m tests.faults.proxy PORT:TARGET …`, it reads modes from standard input, a line each.
"""

import asyncio
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

from tests.edge.programs import free_port

ROOT = Path(__file__).resolve().parents[2]
PIECE = 64 * 1024  # bytes
POLL = 0.01  # seconds
PATIENCE = 60.0  # seconds


class Mode(Struct, frozen=True):
    """How bytes pass, until the next mode; by default freely."""

    cut: bool = False  # reset all connections once
    refuse: bool = False  # reset each new connection
    stall: bool = False  # pass nothing, and keep connections open
    delay: float = 0.0  # seconds by which each piece comes later
    rate: float = 0.0  # bytes a second and direction of a connection, 0 for any


class Proxy:
    """The process, with a port for each target port."""

    def __init__(self, *targets: int) -> None:
        self.ports = {target: free_port() for target in targets}

    def __enter__(self) -> Self:
        pairs = [f"{port}:{target}" for target, port in self.ports.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *pairs], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def set(self, mode: Mode) -> None:
        """Let bytes pass like this from now on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(mode) + b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


class _Passing:
    """The connections, and the present mode."""

    def __init__(self) -> None:
        self.mode = Mode()
        self._writers: set[asyncio.StreamWriter] = set()

    def become(self, mode: Mode) -> None:
        self.mode = mode
        if mode.cut:
            for writer in self._writers:
                writer.transport.abort()

    async def join(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if self.mode.refuse:
            writer.transport.abort()
            return
        try:
            from_target, to_target = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, to_target}
        pumps = [
            asyncio.create_task(self._pump(reader, to_target)),
            asyncio.create_task(self._pump(from_target, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._writers -= {writer, to_target}
            for pump in pumps:
                pump.cancel()
            for end in (writer, to_target):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                await self._hold(len(piece))
                writer.write(piece)
                await writer.drain()

    async def _hold(self, size: int) -> None:
        """Wait as long as the mode demands for a piece of this size."""
        if self.mode.delay:
            await asyncio.sleep(self.mode.delay)
        due = time.monotonic()
        while self.mode.stall or (self.mode.rate and time.monotonic() < due + size / self.mode.rate):  # noqa: ASYNC110 - time passes
            await asyncio.sleep(POLL)


async def _main(pairs: list[str]) -> None:
    passing = _Passing()

    async def serve(port: int, target: int) -> asyncio.Server:
        return await asyncio.start_server(
            lambda reader, writer: passing.join(target, reader, writer), "127.0.0.1", port
        )

    servers = [await serve(*map(int, pair.split(":"))) for pair in pairs]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        passing.become(msgspec.json.decode(line, type=Mode))
        sys.stdout.write("done\n")
        sys.stdout.flush()
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
