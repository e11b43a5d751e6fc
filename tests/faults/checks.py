"""The checks of a history. Each yields the violations that it finds, in words; a correct service gives none."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from uuid import UUID

from msgspec import Struct

from docs.reference.calls import document
from tests.faults.events import versions_of
from tests.faults.history import Answered, Fault, Followed, History, Seen, Sent, Surprise
from tests.postgres.servers import BACK_WITHIN


class Final(Struct, frozen=True):
    """What there is at the end, when all clients have stopped and the feed was read to its end."""

    versions: Mapping[UUID, int]  # of every row, of clients' entities and others
    verified: str = ""  # what `pqs verify` printed, if it did not find the counts exact


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
    for client in {client for client, _ in seen}:
        newest = seen[max(key for key in seen if key[0] == client)]
        for entity_id, version in final.versions.items():
            if newest.get(entity_id, 0) < version:
                yield f"{client} got {entity_id} up to version {newest.get(entity_id, 0)} of {version}"


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


def back_in_time(history: History, _: Final) -> Iterator[str]:
    """The service is back within the bound of its database being back."""
    for each in history.of(Fault):
        if each.back is not None and (each.healthy is None or each.healthy - each.back > BACK_WITHIN):
            took = "never" if each.healthy is None else f"{each.healthy - each.back:.2f} s later"
            yield f"after fault {each.number} ({each.kind}) the service was back {took}"


CHECKS: dict[str, Check] = {
    "answers that no correct service gives": surprises,
    "acknowledged changes lost, or applied twice": applied_once,
    "versions that went down": never_down,
    "counts that are not exact": counts,
    "feeds that are incomplete or out of order": feed,
    "answers that are not documented": only_documented,
    "returns later than 2 s after the database's": back_in_time,
}


def violations(history: History, final: Final) -> dict[str, list[str]]:
    """The violations that each check finds."""
    return {name: list(check(history, final)) for name, check in CHECKS.items()}
