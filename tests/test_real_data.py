"""Ten years of real node failures through a real service."""

import csv
import fcntl
import json
import lzma
import random
import re
import subprocess
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
from msgspec import Struct

from app.domain.positions import Position
from app.embedded.wheel import binary
from tests.databases import new_database
from tests.making import Json
from tests.processes import DATA, serving, until

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not there: {DATA}"),
    # These tests are no coroutines, and use databases of their own.
    pytest.mark.usefixtures("anyio_backend"),
]

EVENTS = 158_549
NODES = 3_577
MOMENT = datetime(2003, 1, 1, tzinfo=UTC)
NDJSON = {"content-type": "application/x-ndjson"}
PIECE = 1_000  # lines that are sent at a time
SEED = 20030101

# Heartbeats that bring one node after the other up to date, again and again.
WRITER = """
import itertools, json, sys, uuid
from datetime import UTC, datetime
import httpx
url, nodes = sys.argv[1], json.load(sys.stdin)
with httpx.Client(base_url=url, timeout=30) as client:
    for sequence, node in enumerate(itertools.cycle(nodes), start=10**6):
        event = {
            "event_id": str(uuid.uuid4()), "type": "node.heartbeat", "entity_id": node,
            "position": {"sequence": sequence}, "occurred_at": datetime.now(UTC).isoformat(),
        }
        assert client.post("/v1/events", json=event).json()["outcome"] == "applied"
        print(node, flush=True)
"""


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> list[bytes]:
    """The events as JSON lines, in log order; the script runs once for all test processes."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent
    events = folder / "lanl.ndjson"
    with (folder / "lanl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not events.exists():
            with events.open("wb") as file:
                subprocess.run([sys.executable, str(DATA / "lanl_events.py")], stdout=file, check=True, timeout=60)
    return events.read_bytes().splitlines(keepends=True)


@pytest.fixture
async def other_database_url() -> AsyncIterator[str]:
    """The address of a second migrated, empty database."""
    async with new_database() as url:
        yield url


class Answer(Struct):
    """The fields used of a line's answer."""

    line: int


class Place(Struct):
    """The fields of an event that decide its order."""

    entity_id: str
    position: Position


READ_ANSWER = msgspec.json.Decoder(Answer).decode
READ_PLACE = msgspec.json.Decoder(Place).decode


def send(client: httpx.Client, lines: list[bytes]) -> tuple[Json, list[bytes]]:
    """Stream lines to the service; returns its summary and the lines that were not applied."""
    pieces = (b"".join(lines[start : start + PIECE]) for start in range(0, len(lines), PIECE))
    answer = client.post("/v1/events", content=pieces, headers=NDJSON).raise_for_status()
    *answers, last = answer.content.splitlines()
    summary = {outcome: count for outcome, count in json.loads(last)["summary"].items() if count}
    return summary, [lines[READ_ANSWER(answer).line - 1] for answer in answers]


def by_entity_and_position(line: bytes) -> tuple[str, int]:
    """The order in which early lines are sent again."""
    place = READ_PLACE(line)
    return place.entity_id, place.position.number


def occurred_at(line: bytes) -> datetime:
    """The time of an event, by which the lines are ordered."""
    return datetime.fromisoformat(json.loads(line)["occurred_at"])


def table(url: str) -> str:
    """All columns of all rows, as text."""
    statement = "SELECT * FROM registration_projections ORDER BY entity_id"
    command = [str(binary("psql")), "--no-psqlrc", "-At", "-d", url, "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def counted(client: httpx.Client) -> dict[str, int]:
    """The non-empty states, and the number of entities in each."""
    counts: dict[str, int] = client.get("/v1/state-counts").raise_for_status().json()["counts"]
    return {state: count for state, count in counts.items() if count}


def test_whole_log_in_order_again_and_shuffled(
    lines: list[bytes], database_url: str, other_database_url: str, tmp_path: Path
) -> None:
    """Each event applies once; resent, none does; shuffled, with early ones resent, the rows are the same."""
    with serving(tmp_path, database_url=database_url, log_level="warning") as service, service.client() as client:
        assert send(client, lines) == ({"received": EVENTS, "applied": EVENTS}, [])
        assert counted(client) == {"active": NODES}
        rows = table(database_url)
        summary, _ = send(client, lines)
        assert summary == {"received": EVENTS, "duplicate": NODES, "stale": EVENTS - NODES}
        assert table(database_url) == rows
    with serving(tmp_path, database_url=other_database_url, log_level="warning") as service:
        shuffled = random.Random(SEED).sample(lines, len(lines))
        with service.client() as client:
            summary, early = send(client, shuffled)
            assert summary.keys() == {"received", "applied", "early"}
            early.sort(key=by_entity_and_position)
            assert send(client, early) == ({"received": len(early), "applied": len(early)}, [])
            assert counted(client) == {"active": NODES}
    assert rows.count("\n") == NODES
    assert table(other_database_url) == rows


# --- One moment in it ----------------------------------------------------------------------------------------------


def time_of(text: str) -> datetime:
    """A time of the csv file, without seconds and zone."""
    month, day, year, hour, minute = map(int, re.split(r"[/ :]", text))
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def states_by_failures(moment: datetime) -> dict[str, int]:
    """The number of nodes in each state at a moment, computed from the failures only.

    A node registers, in five steps a second apart, one day before its first failure, and whenever a failure is
    fixed. A failure lasts at least a minute, and one that begins up to a minute after the end of others continues
    them.
    """
    steps = ("pending_registration", "accepted", "awaiting_ack", "ack_received", "active")
    failures: dict[tuple[str, str], list[tuple[datetime, datetime]]] = defaultdict(list)
    minute = timedelta(minutes=1)
    with lzma.open(DATA / "lanl-failures-1996-2005.csv.xz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            started, fixed = time_of(row["Prob Started"]), time_of(row["Prob Fixed"])
            node = row["System"], row["nodenumz"] or "0"
            failures[node].append((started, fixed if fixed > started else started + minute))
    counts: Counter[str] = Counter()
    for spans in failures.values():
        up_since = min(started for started, _ in spans) - timedelta(days=1)
        if moment < up_since:
            continue
        begun = [fixed for started, fixed in spans if started <= moment]
        if begun:
            up_since = max(begun)
            next_failure = min((started for started, _ in spans if started > moment), default=None)
            goes_on = next_failure is not None and next_failure - up_since <= minute
            if moment < up_since or goes_on:
                counts["liveness_expired"] += 1
                continue
        counts[steps[min(int((moment - up_since).total_seconds()), 4)]] += 1
    return dict(counts)


@contextmanager
def writing(url: str, nodes: list[str], log: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that sends heartbeats for these nodes, and records which."""
    command = [sys.executable, "-c", WRITER, url]
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, text=True) as process,
    ):
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(nodes))
            process.stdin.close()
            yield process
        finally:
            process.kill()


def test_one_moment_of_the_log(lines: list[bytes], database_url: str, tmp_path: Path) -> None:
    """Up to 2003 the counts match the failures, and an overdue scan during writes misses and repeats no node."""
    past = lines[: bisect_right(lines, MOMENT, key=occurred_at)]
    with serving(tmp_path, database_url=database_url, log_level="warning") as service, service.client() as client:
        assert send(client, past) == ({"received": len(past), "applied": len(past)}, [])
        expected = states_by_failures(MOMENT)
        assert counted(client) == expected

        first = client.get("/v1/overdue/liveness", params={"limit": 1000}).raise_for_status().json()
        assert len(first["items"]) == min(1000, expected["active"])
        active = client.get("/v1/entities", params={"state": "active"}, headers={"accept": NDJSON["content-type"]})
        nodes = sorted(
            (row["liveness_deadline"], row["entity_id"]) for row in map(json.loads, active.text.splitlines())
        )
        order = [node for _, node in nodes]
        touched, untouched = order[-2::-3], set(order) - set(order[-2::-3])
        written = tmp_path / "written"
        with writing(service.url, touched, written) as writer:
            until(lambda: written.stat().st_size, "the writing begins")
            before = written.stat().st_size
            seen: list[str] = []
            params: dict[str, str | int] = {"limit": 7}
            while True:
                page = client.get("/v1/overdue/liveness", params=params).raise_for_status().json()
                seen += [item["entity_id"] for item in page["items"]]
                if page["next_cursor"] is None:
                    break
                params["cursor"] = page["next_cursor"]
            assert writer.poll() is None
            assert written.stat().st_size > before
        times = Counter(seen)
        assert {node: times[node] for node in untouched} == dict.fromkeys(untouched, 1)
        assert times.keys() <= set(order)
        assert max(times.values()) == 1
        assert 0 < sum(times[node] for node in touched) < len(touched)
        assert counted(client) == expected
