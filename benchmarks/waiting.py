"""Reads that wait: a thousand of them on one deadline."""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta

from benchmarks import herd
from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import WORKERS, start_ours
from benchmarks.herd import Herd, quantile
from benchmarks.load import Client
from benchmarks.machine import BenchmarkError
from benchmarks.report import Row

WAITERS = 1000
DOMAIN = "waiting"  # of the nodes whose deadlines are waited for
PATH = f"/v1/overdue/ack?domain={DOMAIN}&limit=1000"
AHEAD = 2.0  # seconds from the event that sets a deadline until it passes
SETTLED = 1.5  # seconds until all wait
WITHIN = 30.0  # seconds
ROUNDS = 10
ASKED = 50.0  # milliseconds after the deadline, p99


def waiting(bench: Bench) -> list[Row]:
    """A thousand requests that wait for the next ack deadline, of one process, and of as many as elsewhere."""
    rows = []
    for workers in (1, WORKERS):
        child, port = start_ours(bench.machine, MAIN, workers=workers)
        try:
            child.answers(port, "/readyz")
            child.rest()
            late = herd.run(_rounds(bench, port))
        finally:
            child.stop()
        what = f"{WAITERS:,} waits for one deadline, {workers} process{'es' if workers > 1 else ''}"
        p50s, p99s = ([quantile(each, share) for each in late] for share in (0.5, 0.99))
        for name, values, target in (("p50", p50s, None), ("p99", p99s, ASKED)):
            middle = quantile(values, 0.5)
            rows.append(
                Row(
                    f"{what}: {name} after it",
                    "the deadline",
                    "ms",
                    middle,
                    0.0,
                    min(values),
                    max(values),
                    target,
                    at_most=True,
                    difference=True,
                )
            )
    return rows


async def _rounds(bench: Bench, port: int) -> list[list[float]]:
    """Of each round, how late the answers were, in milliseconds. A first one does not count."""
    waits = Herd(port)
    try:
        await waits.open(WAITERS)
        rounds = ROUNDS if not bench.quick else bench.size.rounds
        return [await _round(waits, port) for _ in range(rounds + 1)][1:]
    finally:
        waits.close()


async def _round(waits: Herd, port: int) -> list[float]:
    with Client(port) as client:
        tag = client.get(PATH).etag
        waits.send(herd.get(PATH, f"If-None-Match: {tag}", "Prefer: wait=60"))
        await asyncio.sleep(SETTLED)
        deadline = datetime.now(UTC) + timedelta(seconds=AHEAD)
        _register(client, deadline)
    answers = await waits.answers(WITHIN)
    if wrong := [body for _, body in answers if not body.startswith(b"HTTP/1.1 200")]:
        raise BenchmarkError(f"{len(wrong)} waits were answered otherwise: {wrong[0][:200].decode()}")
    return [(at - deadline.timestamp()) * 1000 for at, _ in answers]


def _register(client: Client, deadline: datetime) -> None:
    """A node with this deadline."""
    event = {
        "event_id": str(uuid.uuid4()),
        "type": "registration.recorded",
        "entity_id": str(uuid.uuid4()),
        "domain": DOMAIN,
        "position": {"sequence": 1},
        "occurred_at": datetime.now(UTC).isoformat(),
        "data": {
            "current_state": "accepted",
            "node_type": "compute",
            "registered_at": datetime.now(UTC).isoformat(),
            "ack_deadline": deadline.isoformat(),
        },
    }
    client.post("/v1/events", json.dumps(event).encode()).json()
