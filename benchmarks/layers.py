"""The processor time of one lookup and of one event by layer: a profile of the answering process."""

import json
import signal
import sys
import time
from pathlib import Path

from benchmarks.bench import MAIN, Bench
from benchmarks.load import wrk
from benchmarks.machine import Child, free_port
from benchmarks.report import Row
from benchmarks.throughput import LOOKUP_CONNECTIONS, POST_CONNECTIONS

SECONDS = 3.0  # times the duration of a round of any other load
PATIENCE = 10.0  # seconds until the profile is written


def layers(bench: Bench) -> list[Row]:
    """Microseconds of processor time per request, by layer of the service; and PostgreSQL's."""
    machine, rows = bench.machine, []
    port, path = free_port(), machine.folder / "profile.json"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "benchmarks.peers.profiled",
        path,
        "serve",
        "--port",
        str(port),
    ]
    child = machine.spawn("profiled", command, PQS_DATABASE_URL=machine.url(MAIN), PQS_LOG_LEVEL="warning")
    try:
        child.answers(port, "/readyz")
        child.rest()
        for what, connections in (("lookup", LOOKUP_CONNECTIONS), ("post", POST_CONNECTIONS)):
            wrk(machine, port, what, bench.source, connections=connections, seconds=1)
            machine.rest(MAIN)
            rows += _layers(bench, child, port, path, what, connections)
    finally:
        child.stop()
    return rows


def _layers(bench: Bench, child: Child, port: int, path: Path, what: str, connections: int) -> list[Row]:
    path.unlink(missing_ok=True)
    before = child.worked(), bench.machine.postgres_worked()
    child.process.send_signal(signal.SIGUSR1)
    load = wrk(bench.machine, port, what, bench.source, connections=connections, seconds=bench.size.seconds * SECONDS)
    child.process.send_signal(signal.SIGUSR2)
    end = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    ours, database = (
        (after - b) / load.answers * 1e6
        for after, b in zip((child.worked(), bench.machine.postgres_worked()), before, strict=True)
    )
    seen: dict[str, int] = json.loads(path.read_text())
    samples = sum(seen.values())
    parts = sorted(((layer, ours * count / samples) for layer, count in seen.items()), key=lambda part: -part[1])
    return [
        Row(f"one {what}, one process: {layer}", "all of it", "µs", took, ours, None, None) for layer, took in parts
    ] + [Row(f"one {what}: PostgreSQL", "the service", "µs", database, ours, None, None)]
