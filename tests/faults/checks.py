"""The checks of a history. Each yields the violations that it finds, in words; a correct service gives none."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from statistics import median
from uuid import UUID

from msgspec import Struct

from docs.reference.calls import document
from tests.faults.events import versions_of
from tests.faults.history import Answered, Fault, Followed, History, Measured, Seen, Sent, Surprise, Worked
from tests.faults.messages import Published
from tests.linearizability import Operation, violation
from tests.postgres.servers import BACK_WITHIN

SOAK = 300.0  # seconds; shorter runs say nothing about memory
GROWTH = 1.15


class Final(Struct, frozen=True):
    """What there is at the end, when all clients have stopped and the feed was read to its end."""

    versions: Mapping[UUID, int]  # of every row, of clients' entities and others
    verified: str = ""  # what `pqs verify` printed, if it did not find the counts exact
    published: Sequence[Published] | None = None  # what the relay sent; None without Kafka
    workflows: Mapping[str, int] = {}  # the version of every workflow
    dead_letters: int = 0
    back_within: float = BACK_WITHIN  # seconds, of the database being back


Check = Callable[[History, Final], Iterator[str]]


def surprises(history: History, _: Final) -> Iterator[str]:
    """No client got an answer that a correct service does not give."""
    for each in history.of(Surprise):
        yield f"{each.client}: {each.words}"


def applied_once(history: History, final: Final) -> Iterator[str]:
    """Nothing acknowledged is lost, and nothing is applied twice: a version is the number of the applied events."""
    least, most = defaultdict[UUID, int](int), defaultdict[UUID, int](int)
    for each in history.of(Sent):
        most[each.entity_id] += each.versions
        least[each.entity_id] += each.versions if each.outcome != "unknown" else 0
    for entity_id, _, outcome in {(each.entity_id, each.version, each.outcome) for each in history.of(Followed)}:
        if outcome in {"swept", "rebased"}:
            most[entity_id] += 1
            least[entity_id] += 1
    for entity_id, count in most.items():
        version = final.versions.get(entity_id, 0)
        if version < least[entity_id]:
            yield f"{entity_id} is at version {version}: of {least[entity_id]} acknowledged changes some are lost"
        if version > count:
            yield f"{entity_id} is at version {version}: of {count} changes some are applied twice"


def never_down(history: History, _: Final) -> Iterator[str]:
    """A version that a client was told is never above one that was asked for later, whoever asked."""
    told = defaultdict[UUID, list[Seen]](list)
    for each in history.of(Seen):
        told[each.entity_id].append(each)
    for entity_id, seen in told.items():
        by_end = sorted(seen, key=lambda each: each.end)
        highest, place = 0, 0
        for each in sorted(seen, key=lambda each: each.begin):
            while place < len(by_end) and by_end[place].end < each.begin:
                highest = max(highest, by_end[place].version)
                place += 1
            if each.version < highest:
                yield f"{entity_id}: {each.client} was told version {each.version} after version {highest}"


def counts(_: History, final: Final) -> Iterator[str]:
    """The counts of states are exact."""
    if final.verified:
        yield f"pqs verify: {final.verified}"


def feed(history: History, final: Final) -> Iterator[str]:
    """A follower got every change of every entity, in the order of versions."""
    seen = defaultdict[tuple[str, int], dict[UUID, int]](dict)
    for each in history.of(Followed):
        newest = seen[each.client, each.epoch]
        before = newest.get(each.entity_id, 0)
        if each.version != before + versions_of(each.type):
            yield f"{each.client} got version {each.version} of {each.entity_id} after version {before}"
        newest[each.entity_id] = max(before, each.version)
    places = defaultdict[UUID | None, set[tuple[UUID, int]]](set)
    for each in history.of(Followed):
        places[each.event_id].add((each.entity_id, each.version))
    for sent in history.of(Sent) if seen else ():
        if sent.outcome != "unknown" and len(places[sent.event_id]) != 1:
            yield f"{sent.event_id} of {sent.client}, acknowledged, is in the feed {len(places[sent.event_id])} times"
    for client in {client for client, _ in seen}:
        newest = seen[max(key for key in seen if key[0] == client)]
        for entity_id, version in final.versions.items():
            if newest.get(entity_id, 0) < version:
                yield f"{client} got {entity_id} up to version {newest.get(entity_id, 0)} of {version}"


def expired_once(history: History, _: Final) -> Iterator[str]:
    """A deadline that has passed is swept once."""
    swept = {(each.entity_id, each.version) for each in history.of(Followed) if each.outcome == "swept"}
    for entity_id, times in Counter(entity_id for entity_id, _ in swept).items():
        if times > 1:
            yield f"{entity_id} expired {times} times"


def outbox(history: History, final: Final) -> Iterator[str]:
    """Everything that follows from triggers and deadlines was sent, in order for each entity, apart from repeats."""
    if final.published is None:
        return
    newest, there = dict[UUID, int](), set[UUID]()
    for message in final.published:
        if message.id in there:
            continue
        there.add(message.id)
        if message.sequence <= newest.get(message.entity_id, 0):
            yield f"{message.entity_id}: {message.type} at {message.sequence} after {newest[message.entity_id]}"
        newest[message.entity_id] = message.sequence
    for sent in history.of(Sent):
        for event_id in sent.emitted:
            if event_id not in there:
                yield f"{sent.entity_id}: {event_id}, which follows from {sent.type} {sent.event_id}, was not sent"
    for change in history.of(Followed):
        if change.outcome == "swept" and change.event_id not in there:
            yield f"{change.entity_id}: {change.type} {change.event_id} was not sent"


def linearizable(history: History, final: Final) -> Iterator[str]:
    """One workflow, changed by one client at a time, could have given all answers about each key."""
    by_key = defaultdict[str, list[Operation]](list)
    for each in history.of(Worked):
        by_key[each.operation.key].append(each.operation)
    for key, operations in by_key.items():
        if (stuck := violation(operations)) is not None:
            yield f"workflow {key}: {stuck}"
        told = max((each.version for each in operations if each.answer), default=0)
        if final.workflows.get(key, 0) < told:
            yield f"workflow {key} is at version {final.workflows.get(key, 0)} after {told}"


def no_dead_letters(_: History, final: Final) -> Iterator[str]:
    """No valid message became a dead letter."""
    if final.dead_letters:
        yield f"{final.dead_letters} dead letters"


def flat_memory(history: History, _: Final) -> Iterator[str]:
    """The steady service's memory does not grow between the second and the last third of a long run."""
    measured = [each for each in history.of(Measured) if each.name == "steady"]
    if not measured or measured[-1].at - measured[0].at < SOAK:
        return
    third = len(measured) // 3
    before, after = (median(each.resident for each in part) for part in (measured[third:-third], measured[-third:]))
    if after > before * GROWTH:
        yield f"the steady service has {after / 2**20:.0f} MiB after {before / 2**20:.0f} MiB"


@cache
def documented() -> dict[str, set[int]]:
    """The statuses of each call in the OpenAPI document."""
    calls = [operation for item in document()["paths"].values() for operation in item.values()]
    return {each["operationId"]: {int(status) for status in each["responses"]} for each in calls}


def only_documented(history: History, _: Final) -> Iterator[str]:
    """Only documented answers are given."""
    found = {(each.call, each.status) for each in history.of(Answered) if each.status}
    for call, status in sorted(found):
        if status not in documented()[call]:
            yield f"{call} answered {status}"


def back_in_time(history: History, final: Final) -> Iterator[str]:
    """The service is back within the bound of its database being back."""
    for each in history.of(Fault):
        if each.back is not None and (each.healthy is None or each.healthy - each.back > final.back_within):
            took = "never" if each.healthy is None else f"{each.healthy - each.back:.2f} s later"
            yield f"after fault {each.number} ({each.kind}) the service was back {took}"


CHECKS: dict[str, Check] = {
    "answers that no correct service gives": surprises,
    "acknowledged changes lost, or applied twice": applied_once,
    "versions that went down": never_down,
    "deadlines that expired twice": expired_once,
    "counts that are not exact": counts,
    "feeds that are incomplete or out of order": feed,
    "messages lost or out of order on the bus": outbox,
    "dead letters": no_dead_letters,
    "workflows that are not linearizable": linearizable,
    "answers that are not documented": only_documented,
    "services that were back late": back_in_time,
    "memory that grows": flat_memory,
}


def violations(history: History, final: Final) -> dict[str, list[str]]:
    """The violations that each check finds."""
    return {name: list(check(history, final)) for name, check in CHECKS.items()}
