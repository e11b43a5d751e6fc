"""The cost of the default settings: the hot calls of a service as installed, beside one that logs warnings only."""

from functools import partial

from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import start_as_installed, start_ours
from benchmarks.load import wrk
from benchmarks.machine import Child
from benchmarks.report import Row, compared
from benchmarks.throughput import LOOKUP_CONNECTIONS, POST_CONNECTIONS, RATE
from benchmarks.workflows import CONNECTIONS, fill

COSTS = 0.97  # of the speed without logs


def defaults(bench: Bench) -> list[Row]:
    """Lookups, heartbeats and commits with the default settings, and with the log level `warning`."""
    machine, source = bench.machine, bench.source
    children: list[Child] = []
    ports: dict[str, int] = {}
    rows = []
    try:
        for name, begin in (("default", start_as_installed), ("quiet", start_ours)):
            child, ports[name] = begin(machine, MAIN)
            children.append(child)
            child.answers(ports[name], "/readyz")
            child.rest()

        def ask(what: str, connections: int, port: int) -> float:
            load = partial(wrk, machine, port, what, source, connections=connections, seconds=bench.seconds)
            if what == "commit":
                fill(machine)
            return bench.written(load) if what == "post" else load().rate

        calls = {"lookup": LOOKUP_CONNECTIONS, "post": POST_CONNECTIONS, "commit": CONNECTIONS}
        for what, connections in calls.items():
            contenders = {name: partial(ask, what, connections, port) for name, port in ports.items()}
            bench.warm(contenders)
            measured = bench.turns(contenders, targets={"quiet": COSTS})
            said = f"{what} with the default settings, {connections} connections"
            rows.append(compared(said, measured["default"], "without logs", measured["quiet"], RATE, COSTS))
    finally:
        for child in children:
            child.stop()
    return rows
