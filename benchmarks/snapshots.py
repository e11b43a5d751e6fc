"""Snapshots: what they cost the POST of a trigger, and how fast all rows are published."""

import sys
import time
from datetime import timedelta
from functools import partial
from typing import cast
from uuid import uuid4

from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import start_ours
from benchmarks.load import wrk
from benchmarks.machine import BenchmarkError, Child
from benchmarks.report import Row, compared
from benchmarks.throughput import POST_CONNECTIONS, RATE
from tests.broker import some_broker

PATIENCE = 300.0  # seconds
LOOK = 0.1  # seconds between two checks of progress
ROUNDS = 9  # when this part is asked for by name
PARTITIONS = 4
DONE = "SELECT begun_at, finished_at FROM snapshot_topics WHERE topic = $1 AND finished = requested"
ROWS_OF = "SELECT rows FROM snapshot_topics WHERE topic = $1"


def snapshots(bench: Bench) -> list[Row]:
    """All measurements of this file."""
    return [_bootstrap(bench), _triggers(bench)]


def _bootstrap(bench: Bench) -> Row:
    """One `pqs snapshots` that publishes all rows to a new topic."""
    rates = []
    with some_broker() as broker:
        for _ in range(1 if bench.quick else 2):
            topic = f"snapshots-{uuid4().hex}"
            broker.create_topic(topic, PARTITIONS)
            rates.append(_published(bench, broker.servers, topic))
    rows = f"{bench.size.rows:,}"
    return Row(
        f"snapshots: bootstrap of {rows} rows",
        "nothing",
        "rows/s",
        max(rates),
        0.0,
        min(rates),
        max(rates),
        None,
        difference=True,
    )


def _published(bench: Bench, servers: str, topic: str) -> float:
    """Rows per second, by the times that the publisher has noted."""
    machine = bench.machine
    environment = {"PQS_DATABASE_URL": machine.url(MAIN), "PQS_KAFKA": servers, "PQS_TOPIC_SNAPSHOTS": topic}
    command = [sys.executable, "-m", "app", "snapshots"]
    child = machine.spawn("snapshots", command, PQS_BUS="off", PQS_LOG_LEVEL="warning", **environment)
    try:
        end = time.monotonic() + PATIENCE
        while (found := machine.ask(MAIN, f"SELECT finished_at - begun_at FROM ({DONE}) AS done", topic)) is None:
            if time.monotonic() > end:
                raise BenchmarkError(f"the bootstrap was not complete after {PATIENCE:.0f} s")
            time.sleep(LOOK)
        return cast("int", machine.ask(MAIN, ROWS_OF, topic)) / cast("timedelta", found).total_seconds()
    finally:
        child.stop()


def _triggers(bench: Bench) -> Row:
    """Triggers to two services on one database, one of which publishes snapshots."""
    machine, source = bench.machine, bench.source
    with some_broker() as broker:
        topic = f"snapshots-{uuid4().hex}"
        broker.create_topic(topic, PARTITIONS)
        ports: dict[str, int] = {}
        children: list[Child] = []
        try:
            for name, publishes in (("off", "false"), ("on", "true")):
                child, ports[name] = start_ours(
                    machine,
                    MAIN,
                    PQS_KAFKA=broker.servers,
                    PQS_BUS="off",
                    PQS_TOPIC_SNAPSHOTS=topic,
                    PQS_SNAPSHOTS=publishes,
                )
                children.append(child)
                child.answers(ports[name], "/readyz")
            _await_bootstrap(bench, topic)
            for child in children:
                child.rest()

            def send(port: int) -> float:
                return wrk(machine, port, "trigger", source, connections=POST_CONNECTIONS, seconds=bench.seconds).rate

            contenders = {name: partial(send, port) for name, port in ports.items()}
            bench.warm(contenders)
            rounds = ROUNDS if "snapshots" in bench.named and not bench.quick else 0
            measured = bench.turns(contenders, rounds)
        finally:
            for child in children:
                child.stop()
    what = f"snapshots: POST of a trigger, {POST_CONNECTIONS} connections"
    return compared(what, measured["on"], "the same without snapshots", measured["off"], RATE, 0.97)


def _await_bootstrap(bench: Bench, topic: str) -> None:
    end = time.monotonic() + PATIENCE
    while bench.machine.ask(MAIN, DONE, topic) is None:
        if time.monotonic() > end:
            raise BenchmarkError(f"the bootstrap was not complete after {PATIENCE:.0f} s")
        time.sleep(LOOK)
