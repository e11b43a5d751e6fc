"""A campaign: load, faults that a seed chooses, and the checks of the history at the end."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from uuid import UUID

import httpx
import msgspec
from msgspec import Struct

from tests.faults.checks import Final, violations
from tests.faults.clients import Client
from tests.faults.faults import LANES
from tests.faults.history import Answered, Fault, History, Sent
from tests.faults.load import Prober, clients, loaded
from tests.faults.readers import Follower
from tests.faults.servers import Servers, running
from tests.processes import pqs

SETTLED = 60.0  # seconds for the service to answer after the last fault, and for the feed to be read to its end
WAITS = (0.0, 0.5)  # seconds between two faults of a lane, at least and at most


class Plan(Struct, frozen=True):
    """What to do: until `seconds` are over, or until every kind in `counts` was made so often."""

    seed: int
    seconds: float
    counts: Mapping[str, int] = {}
    module: str = "app"  # that each `pqs` imports first


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
        found = violations(history, final)
        return _result(plan, history, found, time.monotonic() - began)


async def _under_load(plan: Plan, servers: Servers, history: History) -> Final:
    seed, urls = str(plan.seed), [each.url for each in servers.services]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits) as http:
        prober = Prober(servers.steady.url, seed)
        everybody = clients(seed, http, urls, history)
        async with loaded(everybody, prober):
            end = time.monotonic() + plan.seconds
            await asyncio.gather(
                *(_lane(lane, plan, servers, prober, history, end) for lane in LANES),
            )
            async with asyncio.timeout(SETTLED):
                await prober.success_after(time.monotonic())
        return await _final(servers, everybody, http)


async def _lane(lane: str, plan: Plan, servers: Servers, prober: Prober, history: History, end: float) -> None:
    """Make the faults of a lane, one after the other."""
    dice = Random(f"{plan.seed} {lane}")
    left = Counter({kind: plan.counts[kind] for kind in LANES[lane] if kind in plan.counts})
    number = 0
    while time.monotonic() < end and (not plan.counts or left.total() > 0):
        kinds = sorted(left.elements()) if plan.counts else sorted(LANES[lane])
        kind, wait, seed = dice.choice(kinds), dice.uniform(*WAITS), dice.random()
        await asyncio.sleep(wait)
        begin = time.monotonic()
        made = await asyncio.to_thread(LANES[lane][kind], servers, Random(seed))
        ended = time.monotonic()
        healthy = None
        if made.back:
            try:
                async with asyncio.timeout(SETTLED):
                    healthy = await prober.success_after(ended)
            except TimeoutError:
                healthy = None
        number += 1
        left[kind] -= 1
        back = ended if made.back else None
        history.add(Fault(number, lane, kind, made.detail, begin, ended, back, healthy, made.times))


async def _final(servers: Servers, everybody: list[Client], http: httpx.AsyncClient) -> Final:
    """Read the feed to its end, all rows, and the counts."""
    for each in everybody:
        if isinstance(each, Follower):
            each.caught_up = False
            async with asyncio.timeout(SETTLED):
                while not each.caught_up:
                    await each.step(each.dice())
    lines = await http.get(
        f"{servers.steady.url}/v1/entities", headers={"accept": "application/x-ndjson"}, timeout=SETTLED
    )
    rows = [msgspec.json.decode(line) for line in lines.content.splitlines()]
    verified = await asyncio.to_thread(pqs, "verify", database_url=servers.owner_url())
    words = "" if verified.returncode == 0 else verified.stdout + verified.stderr
    return Final({msgspec.convert(row["entity_id"], UUID): row["version"] for row in rows}, words)


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
