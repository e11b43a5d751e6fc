"""Following: how soon a thousand followers get a change, the cost of ten thousand, and the log's cost for writers."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable
from functools import partial

from benchmarks import herd
from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import start_ours
from benchmarks.herd import Herd, quantile
from benchmarks.load import Client, wrk
from benchmarks.machine import BenchmarkError, resident
from benchmarks.report import Row, compared
from benchmarks.throughput import LOOKUP_CONNECTIONS, POST_CONNECTIONS, RATE

FOLLOWERS = 1000
TOLD = 20  # changes that a thousand followers are told, one after the other
TOLD_EVERY = 0.5  # seconds
ASKED = (("p50", 0.5, 30.0), ("p99", 0.99, 100.0))  # milliseconds
IDLE = 10_000  # followers of one process
OPEN = str(2 * IDLE)  # connections that a process takes
FED = 40_000  # changes that one follower reads
FED_AT_ONCE = 1000
FASTEST = 20_000.0  # changes a second, at least
MIB = 1024 * 1024
STREAM = ("Accept: application/x-ndjson",)
DOMAIN = "followed"  # of what is written here


def changes(bench: Bench) -> list[Row]:
    """All measurements of this file."""
    return [*_told(bench), *_idle(bench), _throughput(bench), *_writers(bench)]


def _told(bench: Bench) -> list[Row]:
    """The time from the start of a change's POST until each of a thousand followers of one process has it."""
    child, port = start_ours(bench.machine, MAIN, workers=1)
    try:
        child.answers(port, "/readyz")
        child.rest()
        took = herd.run(_tell(port, TOLD if not bench.quick else TOLD // 4))
    finally:
        child.stop()
    return [
        Row(
            f"a change to {FOLLOWERS:,} followers: {name}",
            "its event is sent",
            "ms",
            quantile([each for change in took for each in change], share),
            0.0,
            min(quantile(change, share) for change in took),
            max(quantile(change, share) for change in took),
            target,
            at_most=True,
            difference=True,
        )
        for name, share, target in ASKED
    ]


async def _tell(port: int, count: int) -> list[list[float]]:
    followers = Herd(port)
    arrived: list[float] = []
    everybody = asyncio.Event()

    def heard(data: bytes, at: float) -> None:
        arrived.extend([at] * data.count(b'"kind":"change"'))
        if len(arrived) >= FOLLOWERS:
            everybody.set()

    try:
        await followers.open(FOLLOWERS)
        followers.send(herd.get(f"/v1/changes?after=now&domain={DOMAIN}", *STREAM))
        await followers.answers(60.0)
        for member in followers.members:
            member.on_data = heard
        took = []
        for _ in range(count + 1):
            arrived.clear()
            everybody.clear()
            began = time.time()
            await asyncio.to_thread(_post, port, _event())
            await asyncio.wait_for(everybody.wait(), 30.0)
            took.append([(at - began) * 1000 for at in arrived])
            await asyncio.sleep(TOLD_EVERY)
        return took[1:]
    finally:
        followers.close()


def _idle(bench: Bench) -> list[Row]:
    """The cost for one process of ten thousand followers without a change: its memory, and others' lookups."""
    machine = bench.machine
    count = IDLE if not bench.quick else IDLE // 10
    children = {name: start_ours(machine, MAIN, workers=1, PQS_MAX_CONNECTIONS=OPEN) for name in ("with", "without")}
    try:
        for child, port in children.values():
            child.answers(port, "/readyz")
            child.rest()
        child, port = children["with"]
        before = resident(child.process.pid)

        async def hold(measure: Callable[[], dict[str, list[float]]]) -> tuple[int, dict[str, list[float]]]:
            followers = Herd(port)
            try:
                await followers.open(count, herd.get(f"/v1/changes?after=now&domain={DOMAIN}", *STREAM))
                await followers.answers(120.0)
                held = resident(child.process.pid)
                return held, await asyncio.to_thread(measure)
            finally:
                followers.close()

        def ask(port: int) -> float:
            return wrk(
                machine, port, "lookup", bench.source, connections=LOOKUP_CONNECTIONS, seconds=bench.seconds
            ).rate

        contenders = {name: partial(ask, port) for name, (_, port) in children.items()}

        def measure() -> dict[str, list[float]]:
            bench.warm(contenders)
            return bench.turns(contenders)

        held, measured = herd.run(hold(measure))
    finally:
        for child, _ in children.values():
            child.stop()
    what = f"{count:,} idle followers of one process"
    kib = (held - before) / count / 1024
    return [
        Row(f"{what}: memory of each", "none", "KiB", kib, 0.0, None, None, difference=True),
        compared(f"{what}: lookups meanwhile", measured["with"], "without", measured["without"], RATE, 0.95),
    ]


def _throughput(bench: Bench) -> Row:
    """The speed at which one follower reads a log."""
    child, port = start_ours(bench.machine, MAIN, workers=1)
    count = FED if not bench.quick else FED // 10
    try:
        child.answers(port, "/readyz")
        child.rest()
        with Client(port) as client:
            began_at = str(client.get(f"/v1/changes?after=now&domain={DOMAIN}").json()["next"])
            for first in range(0, count, FED_AT_ONCE):
                events = [_event() for _ in range(min(FED_AT_ONCE, count - first))]
                client.post("/v1/events", json.dumps(events).encode()).json()
        rates = [herd.run(_read(port, began_at, count)) for _ in range(bench.size.rounds + 1)][1:]
    finally:
        child.stop()
    middle = quantile(rates, 0.5)
    what = f"one follower reads {count:,} changes"
    return Row(what, "asked for", RATE, middle, FASTEST, min(rates) / FASTEST, max(rates) / FASTEST, 1.0)


async def _read(port: int, after: str, count: int) -> float:
    follower = Herd(port)
    seen = 0
    complete = asyncio.Event()

    def heard(data: bytes, _at: float) -> None:
        nonlocal seen
        seen += len(re.findall(rb'"kind":"change"', data))
        if seen >= count * 0.99:  # what lies across two pieces is not counted
            complete.set()

    try:
        await follower.open(1)
        follower.members[0].on_data = heard
        began = time.perf_counter()
        follower.send(herd.get(f"/v1/changes?after={after}&domain={DOMAIN}", *STREAM))
        await asyncio.wait_for(complete.wait(), 60.0)
        return seen / (time.perf_counter() - began)
    finally:
        follower.close()


def _writers(bench: Bench) -> list[Row]:
    """Heartbeats and triggers with the log and without it."""
    machine = bench.machine
    children = {name: start_ours(machine, MAIN, PQS_CHANGES=name) for name in ("transitions", "off")}
    rows = []
    try:
        for child, port in children.values():
            child.answers(port, "/readyz")
            child.rest()
        for what, said, target in (("post", "a heartbeat", 0.98), ("trigger", "a trigger", 0.92)):

            def send(port: int, what: str = what) -> float:
                return wrk(
                    machine, port, what, bench.source, connections=POST_CONNECTIONS, seconds=bench.seconds
                ).rate

            contenders = {name: partial(send, port) for name, (_, port) in children.items()}
            bench.warm(contenders)
            measured = bench.turns(contenders, targets={"off": target})
            rows.append(
                compared(
                    f"POST of {said} with the change log, {POST_CONNECTIONS} connections",
                    measured["transitions"],
                    "without it",
                    measured["off"],
                    RATE,
                    target,
                )
            )
    finally:
        for child, _ in children.values():
            child.stop()
    return rows


def _event() -> dict[str, object]:
    """The registration of a new node."""
    return {
        "event_id": str(uuid.uuid4()),
        "type": "registration.initiated",
        "entity_id": str(uuid.uuid4()),
        "domain": DOMAIN,
        "position": {"sequence": 1},
        "occurred_at": "2026-01-01T00:00:00Z",
        "data": {"node_type": "compute"},
    }


def _post(port: int, event: dict[str, object]) -> None:
    with Client(port) as client:
        answer = client.post("/v1/events", json.dumps(event).encode()).json()
    if answer["outcome"] != "applied":
        raise BenchmarkError(f"an event was {answer['outcome']}")
