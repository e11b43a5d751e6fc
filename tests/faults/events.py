"""Writers of events: each sends the events of entities of its own, and sends again what was not answered.

An entity has one writer, so an event that was never sent before can only be `applied`. An event that was sent before
without an answer may be `duplicate` or `stale` as well: then that attempt had applied it.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import httpx
import msgspec

from tests.faults.clients import PAUSE, Client, unanswered
from tests.faults.history import Seen, Sent

GIVEN_UP = 0.03  # share of the single events that a writer gives up when they are not answered
ATTEMPTS = 1000  # more is a service that does not come back
ENTITIES = 30  # of a writer
ARRAY, LINES = 8, 40  # the most events of an array and of a stream
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}

# The events that follow from each trigger.
FOLLOWING = {
    "node.introspected": ("registration.initiated", "registration.accepted", "registration.ack_requested"),
    "node.registration_acked": ("registration.ack_received", "registration.activated"),
    "node.heartbeat": (),
    "node.deregistered": ("registration.liveness_expired",),
}


@dataclass
class Entity:
    """An entity and its last event."""

    id: UUID
    sequence: int = 0
    certain: bool = True  # whether the last event is known to be applied
    last: str = ""  # the type of the last event


def versions_of(type_: str) -> int:
    """By how much an applied event of a type raises the version of its entity's row."""
    return len(FOLLOWING.get(type_, ())) or 1


def now() -> str:
    """The present, as text."""
    return datetime.now(UTC).isoformat()


def recorded(entity: Entity, dice: Random) -> dict[str, Any]:
    """The next event of an entity: a fact that is applied whatever the row is."""
    state = dice.choice(("accepted", "awaiting_ack", "active", "rejected"))
    data = {"current_state": state, "node_type": "compute", "registered_at": "2026-01-01T00:00:00Z"}
    return _event(entity, "registration.recorded", data)


def trigger(entity: Entity, dice: Random) -> dict[str, Any]:
    """The next event of an entity whose node registers, lives a while, and leaves."""
    match entity.last:
        case "" | "node.deregistered":
            return _event(entity, "node.introspected", {"node_type": "compute"})
        case "node.introspected":
            return _event(entity, "node.registration_acked", {})
        case _:
            return _event(entity, "node.deregistered" if dice.random() < 0.3 else "node.heartbeat", {})


def _event(entity: Entity, type_: str, data: dict[str, Any]) -> dict[str, Any]:
    position = {"sequence": entity.sequence + 1}
    if entity.certain and entity.sequence:
        position["previous"] = entity.sequence
    entity.sequence += 1
    entity.last = type_
    return {
        "event_id": str(uuid5(entity.id, str(entity.sequence))),
        "type": type_,
        "entity_id": str(entity.id),
        "position": position,
        "occurred_at": now(),
        "data": data,
    }


class Writer(Client):
    """A writer of events: facts, which it may give up, or triggers, which it sends until they are answered."""

    triggers = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.entities = [
            Entity(uuid5(NAMESPACE_URL, f"{self.seed} {self.name} {number}")) for number in range(ENTITIES)
        ]

    async def step(self, dice: Random) -> None:
        """Send an event, an array, or a stream of lines."""
        form = dice.random()
        make = trigger if self.triggers else recorded
        if form < 0.6:
            await self._single(dice, dice.choice(self.entities))
        else:
            count = dice.randint(1, ARRAY if form < 0.9 else LINES)
            events = [make(dice.choice(self.entities), dice) for _ in range(count)]
            await (self._array if form < 0.9 else self._lines)(dice, events)
        await asyncio.sleep(dice.uniform(0, 0.05))

    async def _single(self, dice: Random, entity: Entity) -> None:
        event = (trigger if self.triggers else recorded)(entity, dice)
        gives_up = not self.triggers and dice.random() < GIVEN_UP
        entity.certain = await self.send(dice, event, gives_up=gives_up)

    async def send(self, dice: Random, event: dict[str, Any], *, gives_up: bool = False) -> bool:
        """Send one event until it is answered, or once; returns whether it is known to be applied."""
        for attempt in range(1 if gives_up else ATTEMPTS):
            begin = time.monotonic()
            content = msgspec.json.encode(event)
            answer = await self.ask(dice, "postEvents", "POST", "/v1/events", content=content, headers=JSON)
            if answer is not None and answer.status_code == 200:
                self._applied(event, answer.json(), attempt, begin)
                return True
            if not unanswered(answer):
                assert answer is not None
                self.surprised(f"{answer.status_code} for {event}: {answer.text[:500]}")
                return False
            if not gives_up:
                await asyncio.sleep(PAUSE)
        if gives_up:
            self._sent(event, "unknown")
        else:
            self.surprised(f"no answer after {ATTEMPTS} attempts")
        return False

    async def _array(self, dice: Random, events: list[dict[str, Any]]) -> None:
        answer, attempt, begin = await self._until_answered(dice, msgspec.json.encode(events), JSON)
        if answer is not None:
            for event, result in zip(events, answer.json()["results"], strict=True):
                self._applied(event, result, attempt, begin)
            self._settle(events)

    async def _lines(self, dice: Random, events: list[dict[str, Any]]) -> None:
        content = b"\n".join(map(msgspec.json.encode, events))
        answer, attempt, _ = await self._until_answered(dice, content, NDJSON)
        if answer is not None:
            *others, end = [msgspec.json.decode(line) for line in answer.content.splitlines()]
            outcomes = {line["line"]: line["outcome"] for line in others}
            assert end["summary"]["received"] == len(events)
            for number, event in enumerate(events, 1):
                self._outcome(event, outcomes.get(number, "applied"), attempt)
            self._settle(events)

    async def _until_answered(
        self, dice: Random, content: bytes, headers: dict[str, str]
    ) -> tuple[httpx.Response | None, int, float]:
        for attempt in range(ATTEMPTS):
            begin = time.monotonic()
            answer = await self.ask(dice, "postEvents", "POST", "/v1/events", content=content, headers=headers)
            if answer is not None and answer.status_code == 200:
                return answer, attempt, begin
            if not unanswered(answer):
                assert answer is not None
                self.surprised(f"{answer.status_code} for valid events: {answer.text[:500]}")
                return None, attempt, begin
            await asyncio.sleep(PAUSE)
        self.surprised(f"no answer after {ATTEMPTS} attempts")
        return None, ATTEMPTS, begin

    def _settle(self, events: list[dict[str, Any]]) -> None:
        ids = {event["entity_id"] for event in events}
        for entity in self.entities:
            if str(entity.id) in ids:
                entity.certain = True

    def _applied(self, event: dict[str, Any], result: dict[str, Any], attempt: int, begin: float) -> None:
        self._outcome(event, result["outcome"], attempt)
        entity_id = UUID(event["entity_id"])
        self.history.add(Seen(self.name, entity_id, begin, time.monotonic(), result["version"] or 0))
        if (told := result.get("events")) and {UUID(each["event_id"]) for each in told} != set(_emitted(event)):
            self.surprised(f"other events follow from {event}: {told}")

    def _outcome(self, event: dict[str, Any], outcome: str, attempt: int) -> None:
        if outcome == "applied":
            self._sent(event, "applied")
        elif attempt and outcome in {"duplicate", "stale"}:
            self._sent(event, "known")
        else:
            self.surprised(f"{outcome} for {event}, attempt {attempt + 1}")

    def _sent(self, event: dict[str, Any], outcome: str) -> None:
        self.history.add(
            Sent(
                self.name,
                UUID(event["entity_id"]),
                UUID(event["event_id"]),
                event["type"],
                outcome,
                versions_of(event["type"]),
                _emitted(event),
            )
        )


class TriggerWriter(Writer):
    """A writer of triggers."""

    triggers = True


def _emitted(event: dict[str, Any]) -> tuple[UUID, ...]:
    """The ids of the events that follow from an event."""
    return tuple(uuid5(UUID(event["event_id"]), type_) for type_ in FOLLOWING.get(event["type"], ()))
