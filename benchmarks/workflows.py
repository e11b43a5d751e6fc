"""Commits per second: to many workflows, and to one that all clients change."""

import asyncio
import threading
import time
from functools import partial

from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import serving
from benchmarks.herd import quantile
from benchmarks.load import pgbench, wrk
from benchmarks.machine import BenchmarkError, Machine
from benchmarks.report import Row, compared
from pqs_client import Client

CONNECTIONS = 32
PGBENCH_CLIENTS = 8
KEYS = 10_000  # requests.lua and commit.sql count with the same
HOT_CLIENTS = 32
HOT_SECONDS = 2.0  # times what one round of any other load takes
HOT_ROUNDS = 3
COMMITS = 0.9  # of pgbench's speed
FAIR = 20.0  # p99 of one update of the hot workflow, at most, divided by its p50
FILL = """
INSERT INTO workflow_state (workflow_key, version, state, updated_at, provenance)
SELECT 'bench-' || i, 1, '{"step": 0}', now(), '{"effect_id": "bench", "timestamp": "2026-01-01T00:00:00Z"}'
FROM generate_series(0, $1::int - 1) AS i
"""
EFFECT = {"effect_id": "bench", "timestamp": "2026-01-01T00:00:00Z"}


def fill(machine: Machine) -> None:
    """Create KEYS workflows, all at version 1."""
    machine.ask(MAIN, "TRUNCATE workflow_state, workflow_actions")
    machine.ask(MAIN, FILL, KEYS)
    machine.ask(MAIN, "VACUUM (ANALYZE) workflow_state")


def commit(bench: Bench) -> list[Row]:
    """Commits without conflicts, each on the version before it, compared with the same UPDATE on the database."""
    machine, source = bench.machine, bench.source
    with serving(machine, source, MAIN, ["ours"], bench.notes) as ports:

        def committed() -> int:
            return int(str(machine.ask(MAIN, "SELECT sum(version - 1)::bigint FROM workflow_state")))

        def ours() -> float:
            fill(machine)
            load = wrk(machine, ports["ours"], "commit", source, connections=CONNECTIONS, seconds=bench.seconds)
            if not load.answers <= committed() <= load.answers + CONNECTIONS:
                raise BenchmarkError(f"{load.answers} commits were answered, and {committed()} are in the table")
            return load.rate

        def direct() -> float:
            fill(machine)
            load = pgbench(machine, MAIN, "commit", source, clients=PGBENCH_CLIENTS, seconds=bench.seconds)
            if committed() != load.answers:
                raise BenchmarkError(f"pgbench made {load.answers} commits, and {committed()} are in the table")
            return load.rate

        contenders = {"ours": ours, "pgbench": direct}
        bench.warm(contenders)
        measured = bench.turns(contenders, targets={"pgbench": COMMITS})
    what = f"commit to one of {KEYS:,} workflows, {CONNECTIONS} connections"
    other = f"pgbench, {PGBENCH_CLIENTS} clients"
    return [compared(what, measured["ours"], other, measured["pgbench"], "/s", COMMITS)]


def hotkey(bench: Bench) -> list[Row]:
    """One workflow that many clients increment with `update`, compared with a single client; no increment is lost."""
    seconds = bench.size.seconds * HOT_SECONDS
    with serving(bench.machine, bench.source, MAIN, ["ours"], bench.notes) as ports:
        base_url = f"http://127.0.0.1:{ports['ours']}"

        waits: list[tuple[float, float]] = []  # p99 and p50, in ms, of each round of many

        def counted(clients: int) -> float:
            result: list[tuple[float, float, float]] = []
            thread = threading.Thread(
                target=lambda: result.append(asyncio.run(_count_up(base_url, clients, seconds)))
            )
            thread.start()  # a loop of its own: the harness has none
            thread.join()
            if not result:
                raise BenchmarkError(f"{clients} clients on one workflow failed; see above")
            rate, p99, p50 = result[0]
            if clients > 1:
                waits.append((p99, p50))
            return rate

        contenders = {"many": partial(counted, HOT_CLIENTS), "one": partial(counted, 1)}
        measured = bench.turns(contenders, min(HOT_ROUNDS, bench.size.rounds), {"one": 1.0})
    what = f"updates of one hot workflow, {HOT_CLIENTS} clients"
    p99s, p50s = [p99 for p99, _ in waits], [p50 for _, p50 in waits]
    return [
        compared(what, measured["many"], "one client", measured["one"], "/s", 1.0),
        compared(f"{what}: p99 of one", p99s, "p50", p50s, "ms", FAIR, at_most=True),
    ]


async def _count_up(base_url: str, clients: int, seconds: float) -> tuple[float, float, float]:
    """Updates per second, and the p99 and p50 in ms of one update.

    Raises BenchmarkError unless the final count has each update exactly once.
    """
    key = f"hot-{time.time_ns()}"
    opened = [Client(base_url) for _ in range(clients)]
    for client in opened:
        await client.__aenter__()
        await client.ready()
    try:
        await opened[0].workflows.create(key, {"count": 0}, EFFECT)
        began = time.perf_counter()
        end = began + seconds

        waits: list[float] = []

        async def count(client: Client) -> None:
            while (asked := time.perf_counter()) < end:
                await client.workflows.update(key, _next)
                waits.append((time.perf_counter() - asked) * 1000)

        await asyncio.gather(*(count(client) for client in opened))
        updates = len(waits)
        took = time.perf_counter() - began
        row = await opened[0].workflows.get(key)
    finally:
        for client in opened:
            await client.__aexit__(None, None, None)
    if row.state != {"count": updates} or row.version != updates + 1:
        raise BenchmarkError(f"{updates} updates led to {row.state}, version {row.version}")
    return updates / took, quantile(waits, 0.99), quantile(waits, 0.5)


def _next(state: dict[str, object]) -> dict[str, object]:
    return {"count": int(str(state["count"])) + 1}
