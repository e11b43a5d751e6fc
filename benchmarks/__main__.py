"""`make bench`: measure the service against its peers on this machine. See README.md in this folder."""

import argparse
import os
import signal
import sys
import time
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from types import FrameType

import asyncpg

from app.errors import PqsError
from benchmarks import (
    auth,
    changes,
    defaults,
    growth,
    layers,
    loop,
    processes,
    processor,
    relay,
    releases,
    rows,
    snapshots,
    tail,
    throughput,
    tracing,
    waiting,
    workflows,
)
from benchmarks.bench import FULL, MAIN, QUICK, Bench, Part
from benchmarks.contenders import LeftOutError
from benchmarks.load import need_wrk
from benchmarks.machine import ROOT, BenchmarkError, Machine
from benchmarks.report import Measured, as_text, commit, noise, write
from benchmarks.rows import Source

# In this order: parts that only read come first.
PARTS: dict[str, Part] = {
    "lookup": throughput.lookup,
    "growth": growth.growth,
    "growth10m": growth.growth10m,
    "post": throughput.post,
    "commit": workflows.commit,
    "hotkey": workflows.hotkey,
    "lone": throughput.lone,
    "auth": auth.auth,
    "defaults": defaults.defaults,
    "tail": tail.tail,
    "ingest1": throughput.ingest1,
    "ingest4": throughput.ingest4,
    "triggers": loop.triggers,
    "consume": loop.consume,
    "deadlines": loop.deadlines,
    "relay": relay.relay,
    "waiting": waiting.waiting,
    "changes": changes.changes,
    "snapshots": snapshots.snapshots,
    "memory": processes.memory,
    "processor": processor.processor,
    "layers": layers.layers,
    "tracing": tracing.tracing,
    "start": processes.start,
    "idle": processes.idle,
}
BY_NAME_ALONE = {"growth10m", "deadlines"}
NEED_NO_ROWS = {"start", "relay", "deadlines", "tracing"}
FAILURES = (BenchmarkError, PqsError, OSError, HTTPException, asyncpg.PostgresError, asyncpg.InterfaceError)
LIMIT = 30 * 60  # seconds for all parts
LIMIT_NAMED = 90 * 60  # seconds for parts that are chosen by name


class OutOfTimeError(Exception):
    """The run took too long. Its results so far are shown."""


def main() -> int:
    """Run the parts, print the table, and write it. The exit status is 1 if a part failed."""
    arguments = _arguments()
    if not Path("/proc/self/clear_refs").exists():
        print("the benchmark reads /proc: it runs only on Linux", file=sys.stderr)
        return 1
    size = QUICK if arguments.quick else FULL
    named = frozenset(arguments.only)
    bench = Bench(
        Machine(), Source(size.rows), size, datetime.now(UTC).replace(microsecond=0), named, arguments.quick
    )
    measured: dict[str, Measured] = {}
    failed = False
    earlier = releases.result(arguments.compare) if arguments.compare else None
    _stop_on_signals(LIMIT_NAMED if named else LIMIT)
    try:
        need_wrk()
        failed = _run(bench, measured)
    except (*FAILURES, OutOfTimeError) as error:
        print(error, file=sys.stderr)
        failed = True
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        failed = True
    finally:
        _ignore_signals()
        bench.machine.close()
    if measured:
        print("\n" + as_text([row for part in measured.values() for row in part.rows]))
        print("".join(f"\n- {note}" for note in bench.notes))
    folder = arguments.out or (None if arguments.quick else ROOT / "docs")
    if measured and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, measured, bench.notes, list(PARTS))
        print(f"written to {folder}")
        if arguments.keep:
            print(f"kept as {releases.keep(folder, arguments.keep)}")
    if measured and earlier is not None:
        print(releases.compare(earlier, measured))
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default=[], type=_names, metavar="PART,…", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a small table and short rounds, to try the benchmark")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write, else docs/ (and nowhere when quick)"
    )
    parser.add_argument(
        "--compare", metavar="RELEASE", help="tell what has changed since a release of results/, or since a JSON file"
    )
    parser.add_argument("--keep", metavar="RELEASE", help="keep all results in results/ as a release's")
    return parser.parse_args()


def _names(value: str) -> list[str]:
    names = [name for name in value.replace(",", " ").split() if name]
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    return names


def _run(bench: Bench, measured: dict[str, Measured]) -> bool:
    """Run the parts one by one, and return whether one failed; the others go on."""
    chosen = [name for name in PARTS if name in bench.named or (not bench.named and name not in BY_NAME_ALONE)]
    failed = False
    bench.machine.start()
    if set(chosen) - NEED_NO_ROWS:
        _say(f"loading {bench.size.rows:,} rows")
        rows.load(bench.machine, MAIN, bench.size.rows, bench.as_of)
    for name in chosen:
        began = time.monotonic()
        if name not in NEED_NO_ROWS:
            bench.machine.rest(MAIN)
        _say(f"{name} …")
        bench.curves, bench.noise = {}, []
        try:
            found = PARTS[name](bench)
        except LeftOutError as error:
            bench.notes.append(str(error))
            continue
        except FAILURES as error:
            _say(f"{name}: {error}")
            bench.notes.append(f"{name} failed: {(str(error) or type(error).__name__).splitlines()[0]}")
            failed = True
            continue
        # The larger variant replaces the smaller one: both have the same rows in the table.
        reduced = bench.quick or name == "growth" or (name == "memory" and name not in bench.named)
        measured["growth" if name == "growth10m" else name] = Measured(
            found, reduced, commit(), curves=bench.curves, noise=[round(ms, 2) for ms in bench.noise]
        )
        _say(f"{name}: {time.monotonic() - began:.0f} s; fixed loop: {noise(bench.noise) or '-'} ms")
    return failed


def _say(text: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S} {text}", flush=True)


def _stop_on_signals(limit: int) -> None:
    """Turn SIGTERM and a closed terminal into KeyboardInterrupt, and the end of the time into an error."""

    def stop(number: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        if number == signal.SIGALRM:
            raise OutOfTimeError(f"the run took longer than {limit // 60} minutes and was stopped")
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(each, stop)
    signal.alarm(limit)


def _ignore_signals() -> None:
    """Ignore signals while everything is stopped: a second Ctrl-C would leave something running."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
