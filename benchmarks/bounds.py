"""The cost of hostile input: time and memory for each kind, in one process, without a database.

`python -m benchmarks.bounds` prints the rows of docs/explanation/security.md, for bodies of 8 MiB, and then the rows
of `bounds_edge.py`, about connections.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from app.domain.folding import fold
from app.domain.projection import REGISTRATION
from app.domain.registration import Timing
from app.errors import PqsError
from app.wire.events import read_event, read_events
from benchmarks import bounds_edge

SIZE = 8 * 1024 * 1024  # bytes of a body
MODULUS = 2**61 - 1  # of Python's hash of a UUID
EVENT = (
    b'{"type":"registration.initiated","event_id":"4d57e181-9064-5e78-975e-94be31b1d0b9","entity_id":"%s",'
    b'"position":{"sequence":1},"occurred_at":"2026-01-01T00:00:01Z","data":{"node_type":"c"%s}}'
)
NODE = b"7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a"


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    """A body of SIZE bytes that repeats one unit."""
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


def array(ids: list[UUID]) -> bytes:
    """An array with one event for each id."""
    return b"[" + b",".join(EVENT % (str(each).encode(), b"") for each in ids) + b"]"


def dry_run(body: bytes) -> None:
    """Read an array and fold it, as in a dry run."""
    fold(REGISTRATION, {}, read_events(body), Timing(), by_position=True)


def keys() -> bytes:
    """Capabilities with 400,000 keys."""
    return b',"capabilities":{' + b",".join(b'"k%d":"%s"' % (n, b"v" * 8) for n in range(400_000)) + b"}"


CASES: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes]]] = {
    "a string of 8 MiB, then `NaN`, in an array": (read_events, lambda: filled(b'["', b"a", b'", NaN]')),
    "a string of 8 MiB with a lone surrogate": (read_event, lambda: filled(b'{"x": "', b"a", b'\\ud800x"}')),
    "an array of 2.8 million empty lists": (read_events, lambda: filled(b"[", b"[],", b"[]]")),
    "an array of 2.8 million empty objects": (read_events, lambda: filled(b"[", b"{},", b"{}]")),
    "an unknown field with a name of 8 MiB": (read_event, lambda: filled(b'{"', b"n", b'": 1}')),
    "one event with 400,000 keys of capabilities": (read_event, lambda: EVENT % (NODE, keys())),
    "10,000 ids that collide, folded": (
        dry_run,
        lambda: array([UUID(int=2**100 + n * MODULUS) for n in range(10_000)]),
    ),
    "10,000 other ids, folded": (
        dry_run,
        lambda: array([UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128) for n in range(10_000)]),
    ),
}


def memory(name: str) -> int:
    """A figure of this process's memory, in KiB (proc(5))."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(case: str) -> None:
    """Print the time and the growth of this process for one case."""
    work, body_of = CASES[case]
    body = body_of()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = memory("VmRSS")
    began = time.perf_counter()
    try:
        work(body)
        said = "read"
    except PqsError as error:
        said = type(error).__name__
    took = time.perf_counter() - began
    grown = max(0, memory("VmHWM") - before) / 1024
    print(f"| {case} | {said} | {took * 1000:,.0f} ms | {grown:,.0f} MiB |", flush=True)


def main() -> None:
    """Measure each case in a process of its own, as a peak is that of a process."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    print("| sent | answer | time | memory |\n| --- | --- | --- | --- |", flush=True)
    for case in CASES:
        subprocess.run([sys.executable, "-m", "benchmarks.bounds", case], check=True)
    bounds_edge.main()


if __name__ == "__main__":
    main()
