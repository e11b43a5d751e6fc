"""Each check of a campaign finds its violation in a history, and finds nothing in a correct one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from msgspec.structs import replace

from tests.faults import checks
from tests.faults.campaign import LONG
from tests.faults.checks import CHECKS, Check, Final, violations
from tests.faults.clients import Client
from tests.faults.faults import LANES
from tests.faults.history import Answered, Fault, Followed, History, Measured, Record, Seen, Sent, Surprise, Worked
from tests.faults.history import read as read_history
from tests.faults.messages import Published
from tests.linearizability import Operation
from tests.making import node

ENTITY, EVENT, NEXT, FOLLOWING = node(1), UUID(int=1), UUID(int=2), UUID(int=3)
KEY = "workflow"

GOOD: list[Record] = [
    Sent("writer", ENTITY, EVENT, "registration.recorded", "applied", 1),
    Seen("writer", ENTITY, 0.0, 1.0, 1),
    Seen("poller", ENTITY, 2.0, 3.0, 1),
    Sent("writer", ENTITY, NEXT, "node.deregistered", "known", 1, (FOLLOWING,)),
    Seen("poller", ENTITY, 4.0, 5.0, 2),
    Followed("follower", 0, 10, ENTITY, 1, "registration.recorded", "applied", EVENT),
    Followed("follower", 0, 11, ENTITY, 2, "node.deregistered", "applied", NEXT),
    Answered("writer", "postEvents", 0.0, 1.0, 200),
    Fault(1, "database", "PostgreSQL killed", "", 1.0, 2.0, 2.0, 3.0),
    Worked(Operation(KEY, 0.0, 1.0, "a", 0, "", "committed", 1, "a")),
    *(Measured("steady", float(at), 100) for at in range(0, 600, 10)),
]
FINAL = Final(
    {ENTITY: 2}, published=[Published(FOLLOWING, ENTITY, "registration.liveness_expired", 2)], workflows={KEY: 1}
)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """An empty history."""
    with History(tmp_path / "history.jsonl") as history:
        yield history


def found(history: History, records: Sequence[Record], final: Final = FINAL) -> set[str]:
    """The names of the checks that find something."""
    for record in records:
        history.add(record)
    return {name for name, words in violations(history, final).items() if words}


def name_of(check: Check) -> str:
    """The name of a check."""
    [name] = [name for name, each in CHECKS.items() if each is check]
    return name


def test_a_correct_history(history: History) -> None:
    """No check finds anything in a correct history."""
    assert found(history, GOOD) == set()


def test_a_history_is_read_back(history: History) -> None:
    """The file has every record as it was added."""
    for record in GOOD:
        history.add(record)
    history._file.flush()
    assert read_history(history.path) == GOOD


MORE: dict[str, tuple[Check, Record]] = {
    "a surprise": (checks.surprises, Surprise("writer", 0.0, "409")),
    "a version that went down": (checks.never_down, Seen("poller", ENTITY, 6.0, 7.0, 1)),
    "a change out of order": (
        checks.feed,
        Followed("follower", 0, 12, ENTITY, 1, "registration.recorded", "applied", EVENT),
    ),
    "an acknowledged event that the feed lacks": (
        checks.feed,
        Sent("writer", node(2), UUID(int=9), "registration.recorded", "applied", 0),
    ),
    "an undocumented status": (checks.only_documented, Answered("writer", "getEntity", 0.0, 1.0, 500)),
    "a service that is back late": (
        checks.back_in_time,
        Fault(2, "database", "failover", "", 1.0, 2.0, 2.0, 4.5),
    ),
    "a service that is not back": (checks.back_in_time, Fault(2, "database", "failover", "", 1.0, 2.0, 2.0)),
    "a workflow that went back": (checks.linearizable, Worked(Operation(KEY, 2.0, 3.0, answer="row"))),
    "an event that did not go out": (
        checks.outbox,
        Sent("writer", ENTITY, UUID(int=7), "node.deregistered", "unknown", 0, (UUID(int=8),)),
    ),
}


@pytest.mark.parametrize("case", MORE)
def test_a_violation_is_found(case: str, history: History) -> None:
    """One more record that a correct service does not cause is found by its check."""
    check, record = MORE[case]
    assert found(history, [*GOOD, record]) == {name_of(check)}


ENDS: dict[str, tuple[Check, Final]] = {
    "a lost change": (checks.applied_once, replace(FINAL, versions={ENTITY: 1})),
    "a lost entity": (checks.applied_once, replace(FINAL, versions={})),
    "wrong counts": (checks.counts, replace(FINAL, verified="active: 2 counted as 3")),
    "a lost message": (checks.outbox, replace(FINAL, published=[])),
    "a lost workflow": (checks.linearizable, replace(FINAL, workflows={})),
    "dead letters": (checks.no_dead_letters, replace(FINAL, dead_letters=1)),
    "a change that nobody was told": (checks.feed, replace(FINAL, versions={ENTITY: 2, node(3): 1})),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_wrong_end_is_found(case: str, history: History) -> None:
    """A wrong end is found by its check."""
    check, final = ENDS[case]
    assert found(history, GOOD, final) == {name_of(check)}


def test_an_event_that_is_applied_twice(history: History) -> None:
    """A version above the number of applied events is found."""
    assert name_of(checks.applied_once) in found(history, GOOD, replace(FINAL, versions={ENTITY: 3}))


def test_an_order_on_the_bus(history: History) -> None:
    """A message behind a later one of its entity is found; a repeat of a message is none."""
    later = Published(UUID(int=5), ENTITY, "registration.initiated", 3)
    assert FINAL.published is not None
    assert found(history, GOOD, replace(FINAL, published=[*FINAL.published, later, *FINAL.published])) == set()
    assert found(history, [], replace(FINAL, published=[later, *FINAL.published])) == {name_of(checks.outbox)}


def test_a_deadline_that_expires_twice(history: History) -> None:
    """Two sweeps of one entity are found."""
    swept = [
        Followed("follower", 0, 20 + version, ENTITY, version, "registration.liveness_expired", "swept", FOLLOWING)
        for version in (3, 4)
    ]
    assert name_of(checks.expired_once) in found(history, [*GOOD, *swept])


def test_memory_that_grows(history: History) -> None:
    """Memory that grows over minutes is found."""
    growing = [Measured("steady", float(at), 100 + at) for at in range(0, 600, 10)]
    assert found(history, growing, Final({})) == {name_of(checks.flat_memory)}


def test_a_long_campaign_makes_every_fault() -> None:
    """The long campaign has a number for each kind of fault, and for no other."""
    assert set(LONG) == {kind for kinds in LANES.values() for kind in kinds}


async def test_a_seed_makes_the_choices(history: History) -> None:
    """A client's choices depend on the seed, its name and the number of the choice, and on nothing else."""

    def choices(seed: str, name: str) -> list[float]:
        client = Client(name, seed, None, [], history)  # type: ignore[arg-type]  # it sends nothing
        return [client.dice().random() for _ in range(5)]

    assert choices("1", "writer") == choices("1", "writer")
    assert choices("1", "writer") != choices("2", "writer")
    assert choices("1", "writer") != choices("1", "poller")
    assert choices("1", "writer")[0] == Random("1 writer 1").random()
