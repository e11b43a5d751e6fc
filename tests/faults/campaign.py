"""A campaign: load, faults that a seed chooses, and the checks of the history at the end."""

import asyncio
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tests.faults.checks import Final, violations
from tests.faults.clients import Client
from tests.faults.cluster import DATABASE
from tests.faults.faults import HANG_UPS, HUNG_UP, LANES, Made
from tests.faults.history import Answered, Fault, History, Measured, Sent, Surprise
from tests.faults.load import Prober, clients, loaded
from tests.faults.messages import published
from tests.faults.readers import Follower
from tests.faults.servers import TOPIC_OUT, Servers, running
from tests.postgres.servers import BACK_WITHIN
from tests.processes import pqs

MEASURED_EVERY = 5.0  # seconds
SETTLED = 60.0  # seconds for the service to answer after the last fault, and for the feed to be read to its end
WAITS = (0.0, 0.3)  # seconds between two faults of a lane, at least and at most
# How many faults of each kind a long campaign makes.
LONG = {
    "service killed": 500,
    "service stopped": 50,
    "worker killed": 50,
    "supervisor killed": 30,
    "sweep killed": 50,
    "sweep stopped": 20,
    HUNG_UP: 10_000,
    "PostgreSQL killed": 150,
    "PostgreSQL's backend killed": 50,
    "PostgreSQL stopped": 20,
    "standby killed": 20,
    "failover": 50,
    "network cut": 40,
    "network refused": 20,
    "network stalled": 15,
    "network delayed": 15,
    "network narrowed": 10,
    "disk filled": 10,
    "connections limited": 15,
    "database read-only": 15,
    "rows locked": 20,
    "table locked": 20,
    "relay killed": 100,
    "relay stopped": 20,
    "consumer killed": 100,
    "consumer stopped": 20,
    "Kafka killed": 30,
    "Kafka stopped": 15,
    "partition added": 6,
    "topic remade": 6,
}


class Plan(Struct, frozen=True):
    """What to do: until `seconds` are over, or until every kind in `counts` was made so often."""

    seed: int
    seconds: float
    counts: Mapping[str, int] = {}
    module: str = "app"  # that each `pqs` imports first
    back_within: float = BACK_WITHIN  # seconds in which the service has to be back after its database


class Result(Struct, frozen=True):
    """What a campaign came to."""

    seed: int
    seconds: float
    faults: dict[str, int]
    requests: int
    without_answer: int
    events: int
    slowest_return: float | None  # seconds
    violations: dict[str, list[str]]


async def run(plan: Plan, folder: Path) -> Result:
    """Run a campaign; the folder gets the history and the logs."""
    with History(folder / "history.jsonl") as history:
        began = time.monotonic()
        with running(folder, plan.module) as servers:
            final = await _under_load(plan, servers, history)
        found = violations(history, replace(final, back_within=plan.back_within))
        return _result(plan, history, found, time.monotonic() - began)


async def _under_load(plan: Plan, servers: Servers, history: History) -> Final:
    seed = str(plan.seed)
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as http:
        prober = Prober(servers.steady.url, seed)
        everybody = clients(servers, seed, http, history)
        async with loaded(everybody, prober):
            end = time.monotonic() + plan.seconds
            measuring = asyncio.create_task(_measure(servers, history))
            lanes = [lane for lane in LANES if lane != "kafka" or servers.kafka is not None]
            async with asyncio.TaskGroup() as group:
                for lane in lanes:
                    group.create_task(_Lane(lane, plan, servers, prober, history).run(end))
            measuring.cancel()
            async with asyncio.timeout(SETTLED):
                await prober.success_after(time.monotonic())
        return await _final(servers, everybody, http, history)


async def _measure(servers: Servers, history: History) -> None:
    while True:
        history.add(Measured("steady", time.monotonic(), await asyncio.to_thread(servers.steady.resident)))
        await asyncio.sleep(MEASURED_EVERY)


class _Lane:
    """Faults one after the other, chosen by the seed and the number of the fault."""

    def __init__(self, lane: str, plan: Plan, servers: Servers, prober: Prober, history: History) -> None:
        self._lane, self._seed, self._servers = lane, plan.seed, servers
        self._prober, self._history = prober, history
        kinds = LANES[lane]
        self._left = Counter({kind: plan.counts[kind] for kind in kinds if kind in plan.counts}) or None
        self._kinds = [] if plan.counts and not self._left else sorted(kinds)

    async def run(self, end: float) -> None:
        """Make faults until the end, or until all are made."""
        number = 0
        while time.monotonic() < end:
            weights = dict.fromkeys(self._kinds, 1) if self._left is None else _weights(+self._left)
            if not weights:
                return
            number += 1
            dice = Random(f"{self._seed} {self._lane} {number}")
            [kind] = dice.choices(sorted(weights), [weights[kind] for kind in sorted(weights)])
            await asyncio.sleep(dice.uniform(*WAITS))
            made = await self._make(number, kind, dice)
            if self._left is not None:
                self._left[kind] -= max(made.times, 1)

    async def _make(self, number: int, kind: str, dice: Random) -> Made:
        begin = time.monotonic()
        try:
            made = await asyncio.to_thread(LANES[self._lane][kind], self._servers, dice)
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            made = Made("failed", times=0)
            self._history.add(Surprise(self._lane, time.monotonic(), f"fault {number}, {kind}: {error}"))
        ended, healthy = time.monotonic(), None
        if made.back is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLED):
                    healthy = await self._prober.success_after(made.back)
        self._history.add(Fault(number, self._lane, kind, made.detail, begin, ended, made.back, healthy, made.times))
        return made


def _weights(left: Mapping[str, int]) -> dict[str, int]:
    """How likely each kind comes next: hang-ups are made by the hundred."""
    return {kind: -(-number // HANG_UPS) if kind == HUNG_UP else number for kind, number in left.items()}


async def _final(servers: Servers, everybody: list[Client], http: httpx.AsyncClient, history: History) -> Final:
    """Wait until everything has come through; then read the feed to its end, all rows, and the counts."""
    if servers.kafka is not None:
        for count, what in ((servers.unread, "not taken in from Kafka"), (servers.unsent, "not sent to Kafka")):
            end = time.monotonic() + SETTLED
            while (left := await asyncio.to_thread(count)) and time.monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            if left:
                history.add(Surprise("operator", time.monotonic(), f"{left} messages are {what} at the end"))
                for program in servers.workers:
                    program.signal(signal.SIGUSR2)
    for each in everybody:
        if isinstance(each, Follower):
            each.caught_up = False
            async with asyncio.timeout(SETTLED):
                while not each.caught_up:
                    await each.step(each.dice())
    rows = await _lines(http, f"{servers.steady.url}/v1/entities")
    verified = await asyncio.to_thread(pqs, "verify", database_url=servers.cluster.primary.url(DATABASE))
    workflows = await asyncio.to_thread(servers.cluster.sql, "SELECT workflow_key, version FROM workflow_state")
    letters = await asyncio.to_thread(servers.cluster.sql, "SELECT count(*) FROM dead_letters")
    sent = None
    if servers.kafka is not None:
        sent = await asyncio.to_thread(published, servers.kafka, TOPIC_OUT)
    return Final(
        {UUID(row["entity_id"]): row["version"] for row in rows},
        "" if verified.returncode == 0 else verified.stdout + verified.stderr,
        sent,
        {key: int(version) for key, version in (line.split("|") for line in workflows.splitlines())},
        int(letters),
    )


async def _lines(http: httpx.AsyncClient, url: str) -> list[dict[str, Any]]:
    answer = await http.get(url, headers={"accept": "application/x-ndjson"}, timeout=SETTLED)
    assert answer.status_code == 200, answer.text
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def _result(plan: Plan, history: History, found: dict[str, list[str]], seconds: float) -> Result:
    faults = Counter[str]()
    for fault in history.of(Fault):
        faults[fault.kind] += fault.times
    returns = [each.healthy - each.back for each in history.of(Fault) if each.healthy and each.back]
    answers = list(history.of(Answered))
    return Result(
        plan.seed,
        seconds,
        dict(faults),
        len(answers),
        sum(each.status in {0, 503} for each in answers),
        sum(1 for _ in history.of(Sent)),
        max(returns, default=None),
        found,
    )
