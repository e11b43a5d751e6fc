"""Events for tests, as JSON and as Event."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from app.domain.events import Event
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.wire.events import read_event

START = datetime(2026, 1, 1, tzinfo=UTC)
NODE = UUID("7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a")

# The types of a registration that goes well, in order.
WAY_TO_ACTIVE = (
    "registration.initiated",
    "registration.accepted",
    "registration.ack_requested",
    "registration.ack_received",
    "registration.activated",
)

Json = dict[str, Any]


def node(number: int) -> UUID:
    """An entity id."""
    return uuid5(NAMESPACE_URL, f"node {number}")


def at(seconds: float) -> str:
    """A time this many seconds after the start, as text."""
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def when(seconds: float) -> datetime:
    """A time this many seconds after the start."""
    return START + timedelta(seconds=seconds)


def event_json(type_: str, sequence: int, *, entity_id: UUID = NODE, data: Json | None = None, **fields: Any) -> Json:
    """An event at a sequence, one second after the event before it; `fields` override the usual ones."""
    event: Json = {
        "event_id": str(uuid5(entity_id, f"{fields.get('domain', '')} {sequence} {type_}")),
        "type": type_,
        "entity_id": str(entity_id),
        "position": {"sequence": sequence},
        "occurred_at": at(sequence),
    }
    if data is None and type_ in {"registration.initiated", "registration.refreshed", "node.introspected"}:
        data = {"node_type": "compute"}
    if data is not None:
        event["data"] = data
    return event | fields


def event(type_: str, sequence: int, *, entity_id: UUID = NODE, data: Json | None = None, **fields: Any) -> Event:
    """The event of `event_json`, read as a value."""
    return read_event(msgspec.json.encode(event_json(type_, sequence, entity_id=entity_id, data=data, **fields)))


def life(entity_id: UUID = NODE, *, first: int = 1, **fields: Any) -> list[Json]:
    """The events of a registration that succeeds."""
    return [
        event_json(type_, sequence, entity_id=entity_id, **fields)
        for sequence, type_ in enumerate(WAY_TO_ACTIVE, start=first)
    ]


def row(state: RegistrationState, **changes: object) -> Registration:
    """A row whose columns all have values that no event of the tests would give them."""
    full = Registration(
        entity_id=NODE,
        domain="registration",
        current_state=state,
        node_type="storage",
        node_version="9.9",
        capabilities={"was": "here"},
        ack_deadline=when(11),
        liveness_deadline=when(12),
        last_heartbeat_at=when(13),
        ack_timeout_emitted_at=when(14),
        liveness_timeout_emitted_at=when(15),
        last_applied_event_id=UUID(int=16),
        last_applied_partition=None,
        last_applied_offset=None,
        last_applied_sequence=17,
        registered_at=when(18),
        updated_at=when(19),
        correlation_id=UUID(int=20),
        version=21,
    )
    return msgspec.structs.replace(full, **changes)
