"""Traces: what one sampled request in a hundred costs the hot calls, by processor time inside one process."""

import json
import sys

from benchmarks.bench import Bench
from benchmarks.machine import free_port
from benchmarks.report import Row

SHARE = 0.01
ROUNDS = 8
PATIENCE = 300.0  # seconds
ASKED = 0.97  # of the requests a second without traces


def tracing(bench: Bench) -> list[Row]:
    """Requests per second of processor time, 1 % of them sampled, and with tracing that is off.

    The rounds of both take turns in one process. Exported spans go to a receiver in another one.
    """
    machine, port = bench.machine, free_port()
    child = machine.spawn("receiver", [sys.executable, "-m", "benchmarks.peers.receiver", str(port)])
    try:
        child.answers(port, "/")
        command = [
            sys.executable,
            "-m",
            "benchmarks.peers.traced",
            str(2 if bench.quick else ROUNDS),
            "0",
            str(SHARE),
        ]
        endpoint = f"http://127.0.0.1:{port}"
        output = machine.run(command, timeout=PATIENCE, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    finally:
        child.stop()
    found: dict[str, dict[str, list[float]]] = json.loads(output)
    rows = []
    for call, by_share in found.items():
        off, sampled = ([1e6 / each for each in by_share[share]] for share in ("0.0", str(SHARE)))
        ratios = [one / other for one, other in zip(sampled, off, strict=True)]
        # The fastest round of each: what else the machine does makes a round slower, and never faster.
        row = Row(
            f"{call} in process, 1 % sampled", "off", "/s of processor", max(sampled), max(off), min(ratios),
            max(ratios), ASKED,
        )  # fmt: skip
        rows.append(row)
    return rows
