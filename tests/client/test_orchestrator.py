"""The orchestrator of the tutorial, run from the tutorial's own file."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tests.databases import new_database
from tests.making import Json, event_json, node
from tests.processes import PATIENCE, Service, environment, serving, until

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial" / "orchestrator.md"
ORCHESTRATOR = ROOT / "docs" / "orchestrator.py"
BLOCK = re.compile(r"(?<=^```python\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)

# Its tests are no coroutines, and use an asynchronous fixture.
pytestmark = pytest.mark.usefixtures("anyio_backend")


def overdue(number: int, seconds: float) -> Json:
    """An event that makes a node whose ack is this many seconds late now."""
    deadline = datetime.now(UTC) - timedelta(seconds=seconds)
    data = {"current_state": "awaiting_ack", "node_type": "compute", "registered_at": "2026-01-01T00:00:00Z"}
    data["ack_deadline"] = deadline.isoformat()
    return event_json("registration.recorded", 1, entity_id=node(number), data=data)


@contextmanager
def orchestrating(url: str) -> Iterator["subprocess.Popen[str]"]:
    """The orchestrator in a process of its own."""
    command = [sys.executable, str(ORCHESTRATOR), url]
    own = environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def said(processes: list["subprocess.Popen[str]"], count: int) -> list[str]:
    """The next lines that the processes print, this many, sorted."""
    streams = {process.stdout.fileno(): "" for process in processes if process.stdout is not None}
    end = time.monotonic() + PATIENCE
    while sum(text.count("\n") for text in streams.values()) < count:
        ready, _, _ = select.select(list(streams), [], [], max(0, end - time.monotonic()))
        assert ready, f"in vain: {count} lines; there are {streams}"
        for stream in ready:
            piece = os.read(stream, 65_536).decode()
            assert piece, f"it has ended: {[process.communicate() for process in processes if process.poll()]}"
            streams[stream] += piece
    return sorted(line for text in streams.values() for line in text.splitlines())


def steps(*named: tuple[str, UUID]) -> list[str]:
    """The lines printed for these steps."""
    return sorted(f"{step} {entity_id}" for step, entity_id in named)


def test_each_step_is_done_once_by_whoever_is_first(service: Service) -> None:
    """Two orchestrators do each overdue node's steps once; a third one started later repeats none."""
    late = [overdue(number, seconds) for number, seconds in enumerate([10, 20, 100, 200, 5000, 86_400])]
    with service.client() as http:
        http.post("/v1/events", json=late).raise_for_status()
        with orchestrating(service.url) as one, orchestrating(service.url) as other:
            lines = said([one, other], len(late))
        names = ["remind", "remind", "tell an operator", "tell an operator", "give up", "give up"]
        assert lines == steps(*((name, node(number)) for number, name in enumerate(names)))
        row = http.get(f"/v1/workflows/ack/{node(5)}").raise_for_status().json()
        assert (row["version"], list(row["state"])) == (1, ["give up"])
        http.post("/v1/events", json=overdue(6, 5000)).raise_for_status()
        with orchestrating(service.url) as later:
            assert said([later], 1) == steps(("give up", node(6)))


async def test_a_sweep_takes_no_node_away(tmp_path: Path) -> None:
    """If a sweep turns deadlines into events, each step of each node is still done once.

    A node that left before its deadline is not late, whatever its state says.
    """
    async with new_database() as url:
        with serving(tmp_path, database_url=url, sweep=True, pool_size=4) as service, service.client() as http:
            left = [
                event_json("node.introspected", 1, entity_id=node(3), data={"node_type": "compute"}),
                event_json("node.deregistered", 2, entity_id=node(3)),
            ]
            late = [overdue(number, seconds) for number, seconds in enumerate([10, 100, 5000])]
            http.post("/v1/events", json=late + left).raise_for_status()
            until(lambda: http.get("/v1/state-counts").json()["counts"]["ack_timed_out"] == 4, "the sweep is done")
            assert http.get("/v1/overdue/ack").json()["items"] == []
            with orchestrating(service.url) as one, orchestrating(service.url) as other:
                lines = said([one, other], len(late))
            names = ["remind", "tell an operator", "give up"]
            assert lines == steps(*((name, node(number)) for number, name in enumerate(names)))
            assert http.get(f"/v1/workflows/ack/{node(3)}").status_code == 404


def test_the_tutorial_shows_this_orchestrator() -> None:
    """The tutorial shows the file that runs here; UPDATE_README=1 updates the tutorial."""
    program = ORCHESTRATOR.read_text(encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    if "UPDATE_README" in os.environ:
        PAGE.write_text(BLOCK.sub(lambda _: program, text), encoding="utf-8")
    else:
        assert BLOCK.findall(text) == [program]
