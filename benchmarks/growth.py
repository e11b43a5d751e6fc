"""The latency of queries by the number of rows, with one worker and one client for each table size."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC
from functools import partial

from benchmarks import rows as table
from benchmarks.bench import GROWTH_ROWS, MAIN, Bench
from benchmarks.contenders import start_ours
from benchmarks.load import Client
from benchmarks.machine import BenchmarkError
from benchmarks.report import Row, compared, figure

TARGET = 1.5
ROUND_SECONDS = 3.0  # at most, of one query in one round
OVERDUE = 20  # one of this many rows is overdue, in either scan
PAGE = 1000  # rows, on the way to the middle


def growth(bench: Bench) -> list[Row]:
    """Latencies at a hundredth, a tenth and all of the rows."""
    return _growth(bench, [bench.size.rows // 100, bench.size.rows // 10, bench.size.rows])


def growth10m(bench: Bench) -> list[Row]:
    """Latencies at a hundredth, a tenth and all of the rows, and at ten million rows."""
    largest = bench.size.rows * 10 if bench.quick else GROWTH_ROWS
    return _growth(bench, [bench.size.rows // 100, bench.size.rows // 10, bench.size.rows, largest])


def _growth(bench: Bench, sizes: list[int]) -> list[Row]:
    """The latency at the largest size relative to the smallest."""
    machine = bench.machine
    with ExitStack() as stack:
        databases = {rows: MAIN if rows == bench.size.rows else f"{MAIN}_{rows}" for rows in sizes}
        for rows, database in databases.items():
            if database != MAIN:
                table.load(machine, database, rows, bench.as_of)
                stack.callback(machine.ask, "postgres", f"DROP DATABASE {database}")
        clients: dict[int, Client] = {}
        paths: dict[int, dict[str, str]] = {}
        for rows, database in databases.items():
            child, port = start_ours(machine, database, workers=1)
            stack.callback(child.stop)
            child.answers(port, "/readyz")
            child.rest()
            clients[rows] = stack.enter_context(Client(port))
            paths[rows] = _paths(bench, clients[rows], rows)
        measured = {
            what: _measure(bench, clients, {rows: paths[rows][what] for rows in sizes}) for what in paths[sizes[0]]
        }
    bench.curves = {
        what: {str(rows): statistics.median(waits) for rows, waits in by_size.items()}
        for what, by_size in measured.items()
    }
    first, last = sizes[0], sizes[-1]
    return [
        compared(
            f"{what}, {last:,} rows", by_size[last], f"{first:,} rows", by_size[first], "ms", TARGET, at_most=True
        )
        for what, by_size in measured.items()
    ]


def _measure(bench: Bench, clients: dict[int, Client], paths: dict[int, str]) -> dict[int, list[float]]:
    """The p50 of each round, in ms, by the number of rows."""
    asks = max(1, bench.size.asks // bench.size.rounds)

    def wait(rows: int) -> float:
        waits: list[float] = []
        end = time.monotonic() + ROUND_SECONDS
        while len(waits) < asks and (not waits or time.monotonic() < end):
            answer = clients[rows].get(paths[rows])
            if answer.status != 200:
                raise BenchmarkError(f"{paths[rows]} was answered with {answer.status}: {answer.body[:300].decode()}")
            waits.append(answer.milliseconds)
        return statistics.median(waits)

    contenders: dict[str, Callable[[], float]] = {str(rows): partial(wait, rows) for rows in clients}
    bench.warm(contenders)
    return {int(rows): waits for rows, waits in bench.turns(contenders).items()}


def _paths(bench: Bench, client: Client, rows: int) -> dict[str, str]:
    """The paths by their names in the table. Raises BenchmarkError if an answer is smaller than planned."""
    as_of = bench.as_of.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    paths = {"state counts": "/v1/state-counts"}
    for scan in ("ack", "liveness"):
        first = f"/v1/overdue/{scan}?as_of={as_of}"
        paths[f"overdue {scan}, first page"] = f"{first}&limit=100"
        paths[f"overdue {scan}, middle page"] = (
            f"{first}&limit=100&cursor={_middle(client, first, rows // OVERDUE // 2)}"
        )
    paths["list by state"] = "/v1/entities?state=ack_received&limit=100"
    paths["capability search, 100 hits"] = "/v1/entities?capability=rare&limit=100"
    for what, path in paths.items():
        items = client.get(path).json().get("items")
        full = min(100, rows // OVERDUE // 2, rows // 50)
        if isinstance(items, list) and len(items) < full:
            raise BenchmarkError(f"{what} has {len(items)} items at {figure(rows)} rows; {full} were expected")
    return paths


def _middle(client: Client, path: str, before: int) -> str:
    """The cursor after this number of rows."""
    cursor = ""
    while before > 0:
        page = client.get(f"{path}&limit={min(before, PAGE)}{cursor and '&cursor=' + cursor}").json()
        cursor = str(page["next_cursor"])
        before -= PAGE
    return cursor
