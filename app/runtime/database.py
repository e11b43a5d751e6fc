"""The database of a `pqs` command: the configured one, or a PostgreSQL that runs as long as the command."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta

from app.embedded.postgres import EmbeddedPostgres, running_url
from app.errors import DatabaseRefusesError, PqsError, StartError, UnusableDatabaseError
from app.runtime.signals import ignore_signals, run_until_stopped, stop_on_signals
from app.settings import Settings
from app.store.database import Database

log = logging.getLogger(__name__)

WATCH = 1.0  # seconds between two checks that the own PostgreSQL still runs


@contextmanager
def own_database(settings: Settings) -> Iterator[str]:
    """The address of the configured database, or of a PostgreSQL that runs during this context.

    From here on Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt. Raises StartError if that PostgreSQL
    does not start, or ends by itself.
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
    """The same for a command beside a running service, whose PostgreSQL it shares.

    Raises StartError if there is no database, unless `create` allows a new one.
    """
    if settings.database_url is None:
        url = running_url(settings.data_dir)
        if url is not None:
            yield url
            return
        if not create and not (settings.data_dir / "postgres").exists():
            raise StartError(
                f"there is no database in {settings.data_dir}; does `pqs serve` use this PQS_DATA_DIR? "
                "(`pqs migrate` creates one)"
            )
    with own_database(settings) as own:
        yield own


async def look_at(url: str, settings: Settings, *, writes: bool = True) -> None:
    """Look once, at the start, whether a database can serve, and log the cause if it cannot yet.

    Raises StartError for causes that only a change of the configuration or of the database mends.
    """
    timeout = timedelta(seconds=settings.statement_timeout)
    database = Database(url, pool_size=1, statement_timeout=timeout, scans=not writes)
    try:
        await database.check(writes=writes)
    except (DatabaseRefusesError, UnusableDatabaseError) as error:
        raise StartError(str(error)) from None
    except PqsError as error:
        log.warning("not ready: %s", error)
    finally:
        await database.close()


def run_worker(settings: Settings, work: Callable[[str, asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Do `work` to its end. It gets the database's address, and the event that a signal sets."""

    async def looked(url: str, stop: asyncio.Event) -> None:
        await look_at(url, settings)
        await work(url, stop)

    with database_of(settings) as url:
        run_until_stopped(lambda stop: looked(url, stop))


def _end_with(server: EmbeddedPostgres, ended: threading.Event) -> None:
    """End this command when its PostgreSQL ends: no request could be answered any more."""
    while not ended.wait(WATCH):
        if not server.is_running():
            os.kill(os.getpid(), signal.SIGTERM)
            return
