"""Requests and events per second: lookup, post, ingest; and the cost of batching for a single client."""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial

from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import WORKERS, LeftOutError, knows_batching, serving
from benchmarks.load import pgbench, stream_in, wrk
from benchmarks.machine import BenchmarkError
from benchmarks.peers import raw
from benchmarks.report import Row, compared
from benchmarks.rows import Event

LOOKUP_CONNECTIONS = 32
POST_CONNECTIONS = 64
PGBENCH_CLIENTS = (8, 32)
PEERS = ("plain", "node", "go")
FAST = {"node", "go"}  # of the peers: the targets are against the better one
LOOKUP_TARGET, POST_TARGET = 1.3, 1.6  # of its speed
RATE = "/s"
LONE = 1.05  # of the latency without joining, at most


def lookup(bench: Bench) -> list[Row]:
    """Point lookups of random entities."""
    machine, source = bench.machine, bench.source
    with serving(machine, source, MAIN, ["ours", *PEERS, "empty"], bench.notes) as ports:

        def ask(port: int) -> float:
            return wrk(machine, port, "lookup", source, connections=LOOKUP_CONNECTIONS, seconds=bench.seconds).rate

        contenders: dict[str, Callable[[], float]] = {name: partial(ask, port) for name, port in ports.items()}
        contenders["pgbench"] = lambda: (
            pgbench(machine, MAIN, "lookup", source, clients=8, seconds=bench.seconds).rate
        )
        bench.warm(contenders)
        measured = bench.turns(contenders, targets=dict.fromkeys(FAST, LOOKUP_TARGET))
    targets = {"plain": 8.0, better(measured, FAST): LOOKUP_TARGET}
    what = f"point lookup, {LOOKUP_CONNECTIONS} connections"
    ours = measured.pop("ours")
    return [compared(what, ours, name, rates, RATE, targets.get(name)) for name, rates in measured.items()]


def post(bench: Bench) -> list[Row]:
    """Single heartbeats, each applied and durable before its answer."""
    machine, source = bench.machine, bench.source
    with serving(machine, source, MAIN, ["ours", *PEERS], bench.notes) as ports:

        def send(port: int) -> float:
            load = partial(wrk, machine, port, "post", source, connections=POST_CONNECTIONS, seconds=bench.seconds)
            return bench.written(load)

        def direct(clients: int) -> float:
            return bench.written(
                partial(pgbench, machine, MAIN, "upsert", source, clients=clients, seconds=bench.seconds)
            )

        contenders: dict[str, Callable[[], float]] = {name: partial(send, port) for name, port in ports.items()}
        contenders |= {f"pgbench, {clients} clients": partial(direct, clients) for clients in PGBENCH_CLIENTS}
        bench.warm(contenders)
        measured = bench.turns(contenders, targets=dict.fromkeys(FAST, POST_TARGET))
    direct_names = {f"pgbench, {clients} clients" for clients in PGBENCH_CLIENTS}
    targets = {"plain": 15.0, better(measured, FAST): POST_TARGET, better(measured, direct_names): 1.25}
    what = f"POST of a heartbeat, {POST_CONNECTIONS} connections"
    ours = measured.pop("ours")
    return [compared(what, ours, name, rates, RATE, targets.get(name)) for name, rates in measured.items()]


def better(measured: Mapping[str, list[float]], names: Set[str]) -> str:
    """The name, of these, that has the highest median; none of them where none was measured."""
    return max(names & measured.keys(), key=lambda name: statistics.median(measured[name]), default="")


def ingest1(bench: Bench) -> list[Row]:
    """One stream of lines, compared with one connection that upserts the same rows."""
    return _ingest(bench, "NDJSON ingest, one stream", 1, 0.85)


def ingest4(bench: Bench) -> list[Row]:
    """Four streams, compared with four connections."""
    return _ingest(bench, f"NDJSON ingest, four streams, {WORKERS} workers", 4, 0.7)


def _ingest(bench: Bench, what: str, lanes: int, target: float) -> list[Row]:
    machine, source = bench.machine, bench.source
    count = bench.size.stream_events // lanes
    with serving(machine, source, MAIN, ["ours"], bench.notes) as ports:

        def ours() -> float:
            return count * lanes / stream(ports["ours"], source.events(count, lanes=lanes), count)

        def theirs() -> float:
            events: list[Iterable[Event]] = [*source.events(count, lanes=lanes)]
            return count * lanes / asyncio.run(raw.measure(machine.url(MAIN), events))

        bench.warm({"ours": ours, "raw": theirs})
        measured = bench.turns({"ours": ours, "raw": theirs}, targets={"raw": target})
    other = f"raw, {lanes} connection{'s' if lanes > 1 else ''}"
    return [compared(what, measured["ours"], other, measured["raw"], "events/s", target)]


def stream(port: int, lanes: Iterable[Iterable[Event]], count: int) -> float:
    """Send one body a lane concurrently; returns the seconds it took. Every event must be applied."""
    bodies = ["".join(f"{event.json()}\n" for event in lane).encode() for lane in lanes]
    applied: list[int] = []

    def send(body: bytes) -> None:
        applied.append(stream_in(port, [body], len(body))["applied"])

    threads = [threading.Thread(target=send, args=(body,), daemon=True) for body in bodies]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if applied != [count] * len(bodies):
        raise BenchmarkError(f"of {len(bodies)} streams of {count} events, {applied} were applied")
    return took


def lone(bench: Bench) -> list[Row]:
    """The latency (p50) of one client on one connection, with batching and without."""
    machine, source = bench.machine, bench.source
    if not knows_batching(machine):
        raise LeftOutError("lone is left out: this service has no setting PQS_BATCHING to switch joining off with")
    rows = []
    with serving(machine, source, MAIN, ["ours", "unjoined"], bench.notes) as ports:
        for what in ("lookup", "post"):

            def wait(port: int, what: str = what) -> float:
                return wrk(machine, port, what, source, connections=1, seconds=bench.seconds).p50

            contenders = {name: partial(wait, port) for name, port in ports.items()}
            bench.warm(contenders)
            measured = bench.turns(contenders, targets={"unjoined": LONE})
            said = f"lone client, p50 of {what}"
            rows.append(
                compared(said, measured["ours"], "without joining", measured["unjoined"], "ms", LONE, at_most=True)
            )
    return rows
