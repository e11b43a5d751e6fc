"""The processor time of one lookup and of one POST, service and PostgreSQL together.

It is the figure to compare between releases on one machine: it moves less than a rate does when the machine is busy.
Where the machine counts instructions (`perf stat`), they are told as well, which hardly move at all.
"""

import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial

from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import WORKERS, LeftOutError, start
from benchmarks.load import wrk
from benchmarks.machine import Child
from benchmarks.report import Row, compared
from benchmarks.throughput import FAST, LOOKUP_CONNECTIONS, POST_CONNECTIONS

COUNTED = "instructions"  # the event that perf counts
PATIENCE = 10.0  # seconds for perf to say what it counted


def processor(bench: Bench) -> list[Row]:
    """Microseconds for each answer of the service and of the peers; instructions where they are counted."""
    calls = {"lookup": LOOKUP_CONNECTIONS, "post": POST_CONNECTIONS}
    return [row for what, connections in calls.items() for row in _spent(bench, what, connections)]


def _spent(bench: Bench, what: str, connections: int) -> list[Row]:
    machine = bench.machine
    children: dict[str, tuple[Child, int]] = {}
    databases: list[float] = []  # PostgreSQL's part of ours

    def load(port: int) -> int:
        return wrk(machine, port, what, bench.source, connections=connections, seconds=bench.seconds).answers

    def spent(name: str) -> float:
        child, port = children[name]
        service, database = child.worked(), machine.postgres_worked()
        answers = load(port)
        service, database = child.worked() - service, machine.postgres_worked() - database
        if name == "ours":
            databases.append(database / answers * 1e6)
        return (service + database) / answers * 1e6

    try:
        for name in ("ours", *sorted(FAST)):
            try:
                child, port = start(machine, name, MAIN)
            except LeftOutError as error:
                bench.notes.append(str(error))
                continue
            children[name] = child, port
            child.answers(port, "/readyz")
            child.rest()
        contenders = {name: partial(spent, name) for name in children}
        bench.warm(contenders)
        databases.clear()
        measured = bench.turns(contenders)
        child, port = children["ours"]
        pids = [*child.pids(), *machine.postgres_pids()]
        counted = [_each(pids, partial(load, port)) for _ in range(bench.size.rounds)]
    finally:
        for child, _ in children.values():
            child.stop()
    said, total = f"processor time of one {what}, {WORKERS} processes and PostgreSQL", measured.pop("ours")
    rows = [compared(said, total, name, times, "µs", at_most=True) for name, times in measured.items()]
    rows.append(compared(f"{said}: of it PostgreSQL", databases, "all of it", total, "µs", at_most=True))
    known = [each for each in counted if each is not None]
    if known:
        rows.append(compared(f"instructions of one {what}", known, "one", [1.0] * len(known), "", at_most=True))
    else:
        bench.notes.append(f"processor, {what}: this machine does not count instructions (perf stat)")
    return rows


def _each(pids: list[int], load: Callable[[], int]) -> float | None:
    """The instructions of processes for each answer; None where the machine does not count them."""
    answers: list[int] = []
    count = instructions(pids, lambda: answers.append(load()))
    return None if count is None else count / answers[0]


def instructions(pids: list[int], work: Callable[[], None], event: str = COUNTED) -> float | None:
    """The instructions that processes need while some work is done; None where the machine does not count them."""
    perf = shutil.which("perf")
    if perf is None:
        work()
        return None
    command = [perf, "stat", "--field-separator", ",", "--event", event, "--pid", ",".join(map(str, pids))]
    counting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        work()
        counting.send_signal(signal.SIGINT)
        _, said = counting.communicate(timeout=PATIENCE)
    finally:
        counting.kill()
    for line in said.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[2].startswith(event):
            return float(fields[0]) if fields[0].replace(".", "").isdigit() else None
    return None
