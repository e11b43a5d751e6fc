"""The resources of the processes: memory under streams, idle memory, and start time."""

import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from app.embedded.postgres import EmbeddedPostgres
from benchmarks.bench import MAIN, MEMORY_EVENTS, Bench
from benchmarks.contenders import WORKERS, start_ours
from benchmarks.load import Client, stream_in, stream_out
from benchmarks.machine import BenchmarkError, Child, free_port, reset_peak, resident
from benchmarks.report import Row, compared
from benchmarks.rows import Event

MIB = 1024 * 1024
BLOCK = 1000  # lines that are sent together

# Prints the foreign modules of a serving process, including the ones that uvicorn and SQLAlchemy load by name.
DEPENDENCIES = """
import sys
ours = {"app", "alembic", "benchmarks", "__main__", "__mp_main__"} | set(sys.stdlib_module_names)
import app.cli, app.main
import uvicorn.lifespan.on, uvicorn.loops.uvloop, app.runtime.protocol
import sqlalchemy.dialects.postgresql.asyncpg
print("\\n".join(name for name in sys.modules if name.partition(".")[0] not in ours))
"""


def memory(bench: Bench) -> list[Row]:
    """The workers' peak memory above idle, while one stream comes in and all rows go out."""
    count = bench.size.memory_events
    if "memory" in bench.named and not bench.quick:
        count = MEMORY_EVENTS
    child, port = start_ours(bench.machine, MAIN)
    summaries: list[dict[str, int]] = []

    def send(number: int) -> None:
        [events] = bench.source.events(number)
        summaries.append(stream_in(port, _blocks(events), _length(bench, number)))

    try:
        child.answers(port, "/readyz")
        child.rest()
        with Client(port) as client:  # loads everything that any request needs
            client.get("/v1/entities?limit=1000").json()
        send(BLOCK)
        before = sum(map(resident, child.workers()))
        for pid in child.workers():
            reset_peak(pid)
        sender = threading.Thread(target=send, args=(count,), daemon=True)
        sender.start()
        read = stream_out(port)
        sender.join()
        peak = sum(resident(pid, peak=True) for pid in child.workers())
    finally:
        child.stop()
    applied = [summary["applied"] for summary in summaries]
    if applied != [BLOCK, count] or read < bench.size.rows:
        raise BenchmarkError(f"{applied} of {[BLOCK, count]} events were applied, and {read} rows read")
    what = f"memory of {WORKERS} workers, {count:,} events in, {bench.size.rows:,} rows out"
    return [Row(what, "before", "MiB", peak / MIB, before / MIB, None, None, 64.0, at_most=True, difference=True)]


def _blocks(events: Iterator[Event]) -> Iterator[bytes]:
    while block := "".join(f"{event.json()}\n" for event in islice(events, BLOCK)):
        yield block.encode()


def _length(bench: Bench, count: int) -> int:
    """Bytes of a stream of `count` events: one in ten is a registration, and each kind has one length."""
    [events] = bench.source.events(2)
    fresh, heartbeat = (len(event.json()) + 1 for event in events)
    registrations = -(-count // 10)
    return registrations * fresh + (count - registrations) * heartbeat


def start(bench: Bench) -> list[Row]:
    """Seconds until `readyz` answers, on an existing data directory."""
    data_dir = bench.machine.folder / "start"

    def ours() -> float:
        port = free_port()
        return _until_ready(bench, [sys.executable, "-m", "app", "serve", "--port", str(port)], port, data_dir)

    dependencies = _dependencies(bench)

    def theirs() -> float:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peers.dependencies", str(dependencies), str(port), str(data_dir)]
        return _until_ready(bench, command, port, data_dir)

    try:
        ours(), theirs()
        measured = bench.turns({"ours": ours, "theirs": theirs}, bench.size.starts)
    finally:
        with EmbeddedPostgres(data_dir):  # takes over the server that a killed service would leave
            pass
    other = "imports + PostgreSQL"
    return [compared("start until readyz", measured["ours"], other, measured["theirs"], "s", 1.3, at_most=True)]


def _until_ready(bench: Bench, command: list[str], port: int, data_dir: Path) -> float:
    began = time.perf_counter()
    child = bench.machine.spawn("start", command, PQS_DATA_DIR=str(data_dir), PQS_LOG_LEVEL="warning")
    try:
        child.answers(port, "/readyz")
        return time.perf_counter() - began
    finally:
        child.stop()


def idle(bench: Bench) -> list[Row]:
    """Memory of an idle worker, and of a process that has only done the imports."""
    machine = bench.machine
    dependencies = _dependencies(bench)

    def ours() -> float:
        child, port = start_ours(machine, MAIN)
        return _at_rest(child, port)

    def theirs() -> float:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peers.dependencies", str(dependencies), str(port)]
        return _at_rest(machine.spawn("dependencies", command), port)

    measured = bench.turns({"ours": ours, "theirs": theirs}, min(3, bench.size.rounds))
    return [compared("idle worker", measured["ours"], "imports", measured["theirs"], "MiB", 1.3, at_most=True)]


def _at_rest(child: Child, port: int) -> float:
    """MiB of the largest serving process, once it is idle."""
    try:
        child.answers(port, "/readyz")
        child.rest()
        return max(map(resident, child.workers())) / MIB
    finally:
        child.stop()


def _dependencies(bench: Bench) -> Path:
    """A file with the names of the imported modules, in import order."""
    path = bench.machine.folder / "dependencies"
    if not path.exists():
        path.write_text(bench.machine.run([sys.executable, "-c", DEPENDENCIES], timeout=60))
    return path
