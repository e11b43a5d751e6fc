"""The parts, and the contract of their workers."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest

from app.concurrency.worker import Worker, working
from app.parts import Parts
from app.settings import Settings, read_settings
from app.store.database import Database
from app.workflows import Pruner

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
SOON = 15.0  # seconds
# Prints which files the modules of app read while they are imported, then whether FastAPI is among what was imported.
IMPORTED = """
import sys

read = []

def hear(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc")):
        frame = sys._getframe(1)
        while frame is not None and "importlib" not in frame.f_code.co_filename:
            if "/app/" in frame.f_code.co_filename and "site-packages" not in frame.f_code.co_filename:
                read.append(arguments[0])
                return
            frame = frame.f_back

sys.addaudithook(hear)
import app.parts
print(read, "fastapi" in sys.modules or "starlette" in sys.modules)
"""


def pruner(parts: Parts) -> Worker:
    """A pruner, which only a service has."""
    database = Database(NOWHERE, pool_size=1, statement_timeout=timedelta(seconds=1))
    return Pruner(database, timedelta(milliseconds=1))


def settings() -> Settings:
    """Settings that enable every worker, with nothing listening at any address."""
    return read_settings(
        {
            "kafka": "127.0.0.1:1",
            "topics_in": "nodes",
            "topic_snapshots": "snapshots",
            "consul_url": "http://127.0.0.1:1",
            "statement_timeout": 1,
        }
    )


@pytest.mark.parametrize("build", [Parts.relay, Parts.sweep, Parts.consumer, Parts.snapshots, pruner])
async def test_a_worker_stops_soon_while_nothing_answers(
    build: Callable[[Parts], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without its database goes on; when stopped, it returns soon and raises nothing."""
    monkeypatch.setattr("app.workflows.PRUNE_LEAST", 0.01)
    async with Parts(settings(), NOWHERE) as parts:
        stop = asyncio.Event()
        task = asyncio.create_task(build(parts).run(stop))
        await asyncio.sleep(0.5)
        assert not task.done()
        stop.set()
        async with asyncio.timeout(SOON):
            await task


class Failing(Worker):
    """A worker that raises an error of its own."""

    async def run(self, stop: asyncio.Event) -> None:
        """Fail."""
        raise LookupError("a bug")


async def test_a_worker_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that ends by an error is logged, and does not end its service."""
    async with working(Failing()):
        await asyncio.sleep(0.01)
    assert caplog.messages == ["a worker has ended: a bug"]


def test_the_parts_need_no_web_framework_and_no_file() -> None:
    """Importing the parts reads only their code, and a worker's process never imports FastAPI."""
    run = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[] False\n"
