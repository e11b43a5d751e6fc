"""One run: its size, its shared resources, and the turns of its contenders."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from benchmarks.load import Load
from benchmarks.machine import BenchmarkError, Machine
from benchmarks.report import Row
from benchmarks.rows import Source
from benchmarks.verdicts import is_open

MAIN = "bench"  # the database of the large table
WARM = 1.0  # seconds of a load that does not count
MISSED = 0.01  # the share of pgbench's guarded UPDATEs that may lose a race: it picks entities at random


@dataclass(frozen=True)
class Size:
    """The size of a run."""

    rows: int
    rounds: int
    seconds: float  # of one load in one round
    stream_events: int  # of one stream in one round of an ingest part
    memory_events: int
    starts: int
    asks: int  # of each kind and table size, in the growth part
    most: int  # rounds, while a target is open


FULL = Size(1_000_000, 5, 3, 80_000, 500_000, 7, 200, 11)
QUICK = Size(20_000, 2, 1, 4_000, 20_000, 2, 20, 3)
MOST_NAMED = 21  # rounds, while a target of a part is open that is chosen by name
LOOP = 500_000  # turns of the fixed loop that shows the machine's noise, some 50 ms
MEMORY_EVENTS = 5_000_000  # if that part is chosen by name
GROWTH_ROWS = 10_000_000


@dataclass
class Bench:
    """The shared resources of a run's parts. `named` are the chosen parts; empty means all."""

    machine: Machine
    source: Source
    size: Size
    as_of: datetime  # deadlines of the loaded rows lie around this moment
    named: frozenset[str]
    quick: bool
    notes: list[str] = field(default_factory=list)
    curves: dict[str, dict[str, float]] = field(default_factory=dict)  # of the present part: ms by number of rows
    noise: list[float] = field(default_factory=list)  # of the present part: ms of the fixed loop before each round
    seconds: float = 0.0  # the duration of one load now

    def __post_init__(self) -> None:
        self.seconds = self.size.seconds

    def warm(self, contenders: Mapping[str, Callable[[], float]]) -> None:
        """A short round that is not counted: it opens connections, prepares statements and reads pages."""
        self.seconds = WARM
        for measure in contenders.values():
            measure()
        self.seconds = self.size.seconds

    def turns(
        self,
        contenders: Mapping[str, Callable[[], float]],
        rounds: int = 0,
        targets: Mapping[str, float] | None = None,
    ) -> dict[str, list[float]]:
        """The measurements of each contender, by round. They take turns, in reverse order every second round.

        `targets` are ratios of the first contender to others. While rounds leave one of them open, there are more.
        """
        measured: dict[str, list[float]] = {name: [] for name in contenders}
        first = rounds or self.size.rounds
        most = max(first, self.size.most if self.quick or not self.named else MOST_NAMED)
        number = 0
        while number < first or (number < most and targets and is_open(measured, targets)):
            self.noise.append(fixed_loop())
            order = list(contenders.items())
            for name, measure in order if number % 2 == 0 else reversed(order):
                measured[name].append(measure())
            number += 1
        return measured

    def written(self, write: Callable[[], Load]) -> float:
        """The rate of a load of heartbeats; checks afterwards that each is in the table."""
        before = self._versions()
        load = write()
        found = self._versions() - before
        if found < load.answers * (1 - MISSED):
            raise BenchmarkError(f"{load.answers} heartbeats were answered, and {found} are in the table")
        return load.rate

    def _versions(self) -> int:
        """The number of changes of all rows of the table."""
        return int(str(self.machine.ask(MAIN, "SELECT sum(version)::bigint FROM registration_projections")))


def fixed_loop() -> float:
    """The time in ms of work that is always the same: it differs only because the machine does."""
    began = time.perf_counter()
    total = 0
    for number in range(LOOP):
        total += number * number
    return (time.perf_counter() - began) * 1000


Part = Callable[[Bench], list[Row]]
