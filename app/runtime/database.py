"""The database of a `pqs` command: the one that is set, or a PostgreSQL that lives as long as the command."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

from app.embedded.postgres import EmbeddedPostgres, running_url
from app.errors import StartError
from app.runtime.signals import ignore_signals, run_until_stopped, stop_on_signals
from app.settings import Settings

WATCH = 1.0  # seconds between two looks at whether the own PostgreSQL is still there


@contextmanager
def own_database(settings: Settings) -> Iterator[str]:
    """The address of the database: the one that is set, or that of a PostgreSQL which lives as long as this.

    From here on Ctrl-C, SIGTERM and a closed terminal are a KeyboardInterrupt. Raises StartError when that
    PostgreSQL does not start, or ends by itself.
    """
    stop_on_signals()
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
            ignore_signals()
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


def run_worker(settings: Settings, work: Callable[[str, asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Do `work` to its end; it is given the database's address, and what run_until_stopped() gives."""
    with database_of(settings) as url:
        run_until_stopped(lambda stop: work(url, stop))


def _end_with(server: EmbeddedPostgres, ended: threading.Event) -> None:
    """End this command when its PostgreSQL ends: without that, no request would ever be answered again."""
    while not ended.wait(WATCH):
        if not server.is_running():
            os.kill(os.getpid(), signal.SIGTERM)
            return
