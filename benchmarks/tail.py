"""The tail: p99 at half of the service's own maximum rate beside its peers, and p99.9 of lookups beside heavy work.

The load is open (see arrivals.py), so that a request counts from the moment when it was due.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from statistics import median

from benchmarks import rows as table
from benchmarks.arrivals import Arrivals, arrive
from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import serving, start_ours
from benchmarks.load import Client, stream_out, wrk
from benchmarks.machine import BenchmarkError
from benchmarks.report import Row, compared, figure
from benchmarks.throughput import FAST, LOOKUP_CONNECTIONS, POST_CONNECTIONS

SHARE = 0.5  # of the service's own maximum rate
MAXIMA = 3  # rounds that find it
STEADY = 1.0  # of the better peer's p99, at most

BESIDE = "beside"  # a database of the same size, as the sweep ends entities that others need alive
LOOKUPS = 1000  # a second
ROUND = 3.0  # times the duration of a round of any other load, for the p99.9
ARRAY = 10_000  # events
CALM = 3.0  # times the p99.9 of lookups alone, at most
ENDED = """
SELECT coalesce(sum(count), 0)::bigint FROM registration_state_counts
WHERE current_state IN ('ack_timed_out', 'liveness_expired')
"""


def tail(bench: Bench) -> list[Row]:
    """All measurements of this file."""
    calls = {"lookup": LOOKUP_CONNECTIONS, "post": POST_CONNECTIONS}
    return [*(row for what, connections in calls.items() for row in _half(bench, what, connections)), _beside(bench)]


def _half(bench: Bench, what: str, connections: int) -> list[Row]:
    """The p99 at half of the own maximum rate, compared with the p99 of the peers at the same rate."""
    machine, source = bench.machine, bench.source
    with serving(machine, source, MAIN, ["ours", *sorted(FAST)], bench.notes) as ports:
        load = partial(wrk, machine, ports["ours"], what, source, connections=connections)
        load(seconds=1)
        rate = SHARE * median(load(seconds=bench.size.seconds).rate for _ in range(MAXIMA))
        seen: dict[str, list[Arrivals]] = {name: [] for name in ports}

        def wait(name: str) -> float:
            seen[name].append(
                arrive(machine, ports[name], what, source, rate=rate, connections=connections, seconds=bench.seconds)
            )
            return seen[name][-1].p99

        contenders = {name: partial(wait, name) for name in ports}
        bench.warm(contenders)
        for each in seen.values():
            each.clear()
        measured = bench.turns(contenders, targets=dict.fromkeys(FAST, STEADY))
    ours = measured.pop("ours")
    best = min(measured, key=lambda name: median(measured[name]), default="")
    bench.notes.append(f"tail, {what} at {rate:,.0f}/s: " + "; ".join(f"{name} {_told(seen[name])}" for name in seen))
    said = f"p99 of {what} at half of the own maximum rate"
    return [
        compared(said, ours, name, waits, "ms", STEADY if name == best else None, at_most=True)
        for name, waits in measured.items()
    ]


def _told(rounds: list[Arrivals]) -> str:
    """Medians of the rounds."""
    p50, p999 = median(each.p50 for each in rounds), median(each.p999 for each in rounds)
    lag, own = median(each.lag_p99 for each in rounds), median(each.microseconds for each in rounds)
    missing = sum(each.missing for each in rounds)
    late = f", {missing} without an answer" if missing else ""
    return (
        f"p50 {figure(p50)} ms, p99.9 {figure(p999)} ms{late} (the load itself: p99 {figure(lag)} ms, {own:.0f} µs)"
    )


def _beside(bench: Bench) -> Row:
    """The p99.9 of lookups while arrays, a sweep and a stream of the whole list run beside, and alone."""
    machine, count = bench.machine, bench.size.rows
    table.load(machine, BESIDE, count, bench.as_of)
    try:
        child, port = start_ours(machine, BESIDE)
        try:
            child.answers(port, "/readyz")
            child.rest()
            work = _Work(bench, port)

            def wait() -> float:
                return arrive(
                    machine,
                    port,
                    "lookup",
                    bench.source,
                    rate=LOOKUPS,
                    connections=LOOKUP_CONNECTIONS,
                    seconds=bench.seconds * ROUND,
                ).p999

            def busy() -> float:
                with work.going_on():
                    return wait()

            bench.warm({"alone": wait})
            measured = bench.turns({"beside": busy, "alone": wait}, targets={"alone": CALM})
        finally:
            child.stop()
    finally:
        machine.ask("postgres", f"DROP DATABASE {BESIDE} WITH (FORCE)")
    bench.notes.append(
        f"tail, beside, in {len(measured['beside'])} rounds: {work.arrays} arrays of {ARRAY:,} events, {work.lists} "
        f"lists of {count:,} rows (the last of a round cut off), and {work.swept:,} deadlines swept"
    )
    said = f"p99.9 of lookups, {LOOKUPS:,}/s, beside arrays of {ARRAY:,}, a sweep and a list of {count:,}"
    return compared(said, measured["beside"], "alone", measured["alone"], "ms", CALM, at_most=True)


class _Work:
    """Arrays, lists and a sweep, which go on until they are stopped, and how much of each was done."""

    def __init__(self, bench: Bench, port: int) -> None:
        self._bench = bench
        self._port = port
        self.arrays = self.lists = self.swept = 0
        self._ended_before = self._ended()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Run all three beside what is done inside. Raises BenchmarkError if one of them did nothing."""
        stopped, failures = threading.Event(), list[Exception]()
        before = self.arrays, self.lists, self._ended()

        def again(work: "partial[None]") -> None:
            try:
                while not stopped.is_set():
                    work()
            except (BenchmarkError, HTTPException, OSError) as error:
                failures.append(error)

        works = (partial(self._array), partial(self._list, stopped))
        threads = [threading.Thread(target=again, args=(work,), daemon=True) for work in works]
        environment = {"PQS_DATABASE_URL": self._bench.machine.url(BESIDE), "PQS_LOG_LEVEL": "warning"}
        sweep = self._bench.machine.spawn("sweep", [sys.executable, "-m", "app", "sweep"], **environment)
        try:
            for thread in threads:
                thread.start()
            while self._ended() == before[2] and not failures and sweep.process.poll() is None:
                time.sleep(0.1)
            yield
        finally:
            stopped.set()
            sweep.stop()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        ended = self._ended()
        self.swept = ended - self._ended_before
        if self.arrays == before[0] or self.lists == before[1] or ended == before[2]:
            raise BenchmarkError("arrays, lists or the sweep did nothing")

    def _ended(self) -> int:
        """The entities that a sweep has ended, or that never were alive."""
        return int(str(self._bench.machine.ask(BESIDE, ENDED)))

    def _array(self) -> None:
        """One array of heartbeats and registrations."""
        [events] = self._bench.source.events(ARRAY)
        body = f"[{','.join(event.json() for event in events)}]".encode()
        with Client(self._port) as client:
            client.post("/v1/events", body).json()
        self.arrays += 1

    def _list(self, stopped: threading.Event) -> None:
        """The whole list as a stream."""
        self.lists += 1
        stream_out(self._port, stopped)
