"""What every `pqs` command lives on: its signals, its database, and for a worker its event loop."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType

from uvicorn import Config

from app.embedded.postgres import EmbeddedPostgres, running_url
from app.errors import StartError
from app.runtime.collector import collect_seldom
from app.settings import Settings

AGAIN = 0.02  # seconds until what Python has dropped is raised again
WATCH = 1.0  # seconds between two looks at whether the own PostgreSQL is still there
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_worker(settings: Settings, work: Callable[[str, asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Do `work` to its end, on the event loop that `pqs serve` has: uvloop where it is installed.

    It is given the database's address, and what Ctrl-C and SIGTERM set: they stop nothing by themselves, so that what
    is under way can come to its end.
    """

    async def until_stopped(url: str) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for each in STOPPING:
            if signal.getsignal(each) is not signal.SIG_IGN:
                loop.add_signal_handler(each, stop.set)
        await work(url, stop)

    collect_seldom()
    with database_of(settings) as url, asyncio.Runner(loop_factory=Config("").get_loop_factory()) as runner:
        runner.run(until_stopped(url))


@contextmanager
def own_database(settings: Settings) -> Iterator[str]:
    """The address of the database: the one that is set, or that of a PostgreSQL which lives as long as this.

    From here on Ctrl-C, SIGTERM and a closed terminal are a KeyboardInterrupt. Raises StartError when that
    PostgreSQL does not start, or ends by itself.
    """
    _stop_on_signals()
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    server = EmbeddedPostgres(settings.data_dir)
    with server as url:
        ended = threading.Event()
        threading.Thread(target=_end_with, args=[server, ended], daemon=True).start()
        try:
            yield url
        finally:
            ended.set()
            _ignore_signals()
            if not server.is_running():
                raise StartError(f"the PostgreSQL in {settings.data_dir} has ended; postgres.log there says why")


@contextmanager
def database_of(settings: Settings, *, create: bool = False) -> Iterator[str]:
    """The same for a command beside a running service, whose PostgreSQL it shares. Only `create` makes a new one.

    Raises StartError where there is none.
    """
    if settings.database_url is None:
        url = running_url(settings.data_dir)
        if url is not None:
            yield url
            return
        if not create and not (settings.data_dir / "postgres").exists():
            raise StartError(f"there is no database in {settings.data_dir}; is PQS_DATA_DIR what `pqs serve` has?")
    with own_database(settings) as own:
        yield own


def _end_with(server: EmbeddedPostgres, ended: threading.Event) -> None:
    """End this command when its PostgreSQL ends: without that, no request would ever be answered again."""
    while not ended.wait(WATCH):
        if not server.is_running():
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _stop_on_signals() -> None:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a KeyboardInterrupt, once: see _ignore_signals."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        raise KeyboardInterrupt

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        # Python drops what is raised within a finalizer, and goes on: so it is raised again a little later.
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            sys.__unraisablehook__(what)

    sys.unraisablehook = unraisable
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(each, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))  # uvicorn knows that one


def _ignore_signals() -> None:
    """From here on the database is being stopped; an impatient second Ctrl-C would leave it running."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
