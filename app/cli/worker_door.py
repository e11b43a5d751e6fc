"""The listener of a worker for those who look after it: where it listens, and what it answers."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager

from app.access.posture import check_host, check_sockets
from app.api.hosts import Hosts, is_loopback_host
from app.api.worker_calls import WorkerCalls
from app.concurrency.worker import OwnWorker
from app.errors import UnavailableError
from app.parts import Parts
from app.runtime.processes import server_tls
from app.runtime.sockets import listening
from app.settings import Settings

SETTING = "PQS_METRICS_HOST"


@contextmanager
def metrics_socket(settings: Settings, port: int) -> Iterator[socket.socket]:
    """A socket that listens where the settings say.

    Raises StartError where nothing can listen, and where others could reach it though nobody is asked for a key.
    """
    check_host(settings.auth, settings.metrics_host, port, setting=SETTING)
    server_tls(settings)  # raises here, before anything starts
    _hosts(settings)
    with listening(settings.metrics_host, port, 1, options="--metrics-host and --metrics-port") as [listener]:
        check_sockets(settings.auth, [listener], setting=SETTING)  # a name may have other addresses by now
        yield listener


async def worker_calls(
    settings: Settings,
    parts: Parts,
    worker: OwnWorker,
    others: Sequence[Callable[[], Coroutine[None, None, str | None]]] = (),
) -> WorkerCalls:
    """What a worker answers. `others` say why other sides that it needs cannot be reached."""
    observed = await parts.observed()

    async def ready() -> str:
        revision, _ = await observed.readiness.check()
        troubles = [worker.trouble(), *await asyncio.gather(*(other() for other in others))]
        if any(troubles):
            raise UnavailableError("; ".join(filter(None, troubles)))
        return revision

    async def text() -> bytes:
        return observed.metrics.text(await observed.numbers())

    return WorkerCalls(ready, text, observed.access, _hosts(settings))


def _hosts(settings: Settings) -> Hosts:
    """The names that are answered to: where others can reach the worker, any, unless PQS_ALLOWED_HOSTS lists some.

    Who scrapes names a worker by an address that nobody knows beforehand. Pages in a browser cannot send a key.
    """
    beyond = not is_loopback_host(settings.metrics_host)
    return Hosts.of(settings.allowed_hosts or ("*" if beyond else None), settings.metrics_host)
