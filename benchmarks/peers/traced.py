"""The processor time of the hot calls inside one process, without sockets and database: tracing off, and sampled.

Run as a program it prints JSON: for each call and each share of sampled requests the microseconds of each round. The
rounds of all shares take turns. Exported spans go to the receiver that OTEL_EXPORTER_OTLP_ENDPOINT names; the time of
the exporter's thread counts.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import uvicorn
import uvloop
from uvicorn.server import ServerState

from app.access.guard import Guard
from app.access.limits import Limits
from app.domain.results import Outcome, Result
from app.domain.states import RegistrationState
from app.main import Application, create_app
from app.projection.batching import Reader, Writer
from app.runtime.protocol import HttpProtocol
from app.settings import Posture, read_settings
from app.tracing.exporter import Exporter
from app.tracing.recorder import Tracer
from tests.making import event_json, row

CONNECTIONS = 32
TURNS = 600  # of all connections, in a round
ID = "7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a"
BODY = json.dumps(event_json("node.heartbeat", 6, entity_id=UUID(ID), data={})).encode()
CALLS = {
    "lookup": f"GET /v1/entities/{ID} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
    "event": b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
}


class Transport(asyncio.Transport):
    """Counts the answers."""

    answers = 0

    def write(self, _data: object) -> None:
        """Count one."""
        Transport.answers += 1

    def close(self) -> None:
        """It has waited too long for a request."""

    def can_write_eof(self) -> bool:
        """As without TLS."""
        return True

    def pause_reading(self) -> None:
        """There is nothing to pause."""

    def resume_reading(self) -> None:
        """There is nothing to resume."""

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, _name: str, default: object = None) -> object:
        """Nothing is known."""
        return default


class Database:
    """Answers reads at once."""

    def __init__(self) -> None:
        self._row = row(RegistrationState.ACTIVE, entity_id=UUID(ID))

    async def read(self, _work: object, names: list[tuple[UUID, str]]) -> dict[tuple[bytes, str], object]:
        """The same row for each."""
        return {(entity_id.bytes, domain): self._row for entity_id, domain in names}


class Projector:
    """Applies events at once."""

    async def persist(self, events: list[Any]) -> list[Result]:
        """An outcome for each."""
        return [
            Result(
                each.event_id,
                Outcome.APPLIED,
                None,
                each.entity_id,
                each.domain,
                RegistrationState.ACTIVE,
                6,
                each.position,
            )
            for each in events
        ]


def hot_calls(*, is_traced: bool) -> tuple[Application, list[HttpProtocol]]:
    """An application whose lanes end at once, and its connections; `is_traced`: built as where traces are wanted."""
    app = cast("Application", create_app(read_settings({"database_url": "postgresql:///none"})))
    service = SimpleNamespace(
        settings=SimpleNamespace(max_body=8 << 20),
        reader=Reader(cast("Any", Database()), joining=True, is_traced=is_traced),
        writer=Writer(cast("Any", Projector()), joining=True, is_traced=is_traced),
        clock=SimpleNamespace(may_be_ahead=lambda _event: False),
        metrics=app.hot_calls._metrics,  # noqa: SLF001 - as the service has it
        access=SimpleNamespace(guard=Guard(Posture.LOOPBACK), limits=Limits()),
    )
    app.hot_calls.service = cast("Any", service)
    config = uvicorn.Config(
        app, http=HttpProtocol, log_config=None, proxy_headers=False, lifespan="off", ws="none", access_log=False
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"x" * 29)]
    connections = [HttpProtocol(config, state, {}) for _ in range(CONNECTIONS)]
    for each in connections:
        each.connection_made(Transport())
    return app, connections


class Rounds:
    """Rounds of one share. Its clock stands still between them: a second is one of a processor that it has alone."""

    def __init__(self, connections: list[HttpProtocol], flush: Callable[[], object]) -> None:
        """`flush` sends what a round has left to send."""
        self._connections = connections
        self._flush = flush
        self._before = 0.0
        self._began = time.process_time()

    def clock(self) -> float:
        """Seconds of processor time in these rounds."""
        return self._before + time.process_time() - self._began

    async def round(self, request: bytes) -> float:
        """Microseconds of processor time of one request."""
        wanted = Transport.answers
        self._began = time.process_time()
        for _ in range(TURNS):
            for each in self._connections:
                each.data_received(request)
            wanted += CONNECTIONS
            while Transport.answers < wanted:  # noqa: ASYNC110 - to be waited for, an answer would take longer
                await asyncio.sleep(0)
        self._flush()
        took = time.process_time() - self._began
        self._before += took
        return took / (TURNS * CONNECTIONS) * 1e6


async def measured(shares: list[float], number_of_rounds: int) -> dict[str, dict[str, list[float]]]:
    """The rounds by call and share; at 0 tracing is off."""
    exporter = Exporter()
    of_shares: dict[float, Rounds] = {}
    for share in shares:
        app, connections = hot_calls(is_traced=share > 0)
        of_shares[share] = rounds = Rounds(connections, exporter.flush)
        if share:
            tracer = Tracer(exporter.export, ratio=share, limit=100, clock=rounds.clock)
            app.hot_calls._metrics.tracer = tracer  # noqa: SLF001 - as above
    found: dict[str, dict[str, list[float]]] = {call: {str(share): [] for share in shares} for call in CALLS}
    for number in range(number_of_rounds):
        for call, request in CALLS.items():
            for share in shares[:: 1 if number % 2 else -1]:
                found[call][str(share)].append(await of_shares[share].round(request))
    await exporter.close()
    return found


if __name__ == "__main__":
    logging.disable(logging.INFO)
    asked = [float(each) for each in sys.argv[2:]]
    result = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measured(asked, int(sys.argv[1])))
    print(json.dumps(result))
    os._exit(0)
