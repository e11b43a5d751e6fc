"""The envelope and the event types."""

import msgspec
import pytest

from app.domain.events import (
    EVENT_CLASSES,
    EVENT_TYPES,
    FACT_CLASSES,
    TRIGGER_CLASSES,
    Event,
    Forgotten,
    Heartbeat,
    key_of,
)
from app.domain.positions import Position
from tests.making import NODE, START, event, event_json

# What the data of each type may have; a star marks what it must have.
FIELDS = {
    "registration.initiated": {"node_type*", "node_version", "capabilities"},
    "registration.accepted": {"ack_deadline"},
    "registration.ack_requested": {"ack_deadline"},
    "registration.rejected": set(),
    "registration.ack_timed_out": set(),
    "registration.ack_received": set(),
    "registration.activated": {"liveness_deadline", "capabilities"},
    "registration.refreshed": {"node_type*", "node_version", "capabilities"},
    "node.heartbeat": {"heartbeat_at", "liveness_deadline"},
    "registration.liveness_expired": set(),
    "registration.recorded": {
        "current_state*",
        "node_type*",
        "registered_at*",
        "node_version",
        "capabilities",
        "ack_deadline",
        "liveness_deadline",
        "last_heartbeat_at",
        "ack_timeout_emitted_at",
        "liveness_timeout_emitted_at",
    },
    "registration.forgotten": {"reason", "permanent"},
    "node.introspected": {"node_type*", "node_version", "capabilities"},
    "node.registration_acked": set(),
    "node.deregistered": set(),
}


def test_there_are_fourteen_event_types() -> None:
    """The event types are those of the tables, each with a class named after it."""
    assert list(EVENT_TYPES) == list(FIELDS)
    assert len(set(EVENT_CLASSES)) == len(EVENT_TYPES)


def test_a_heartbeat_and_a_forget_are_both_facts_and_triggers() -> None:
    """Twelve types are facts and five are triggers; what comes in is one of either."""
    assert (len(FACT_CLASSES), len(TRIGGER_CLASSES)) == (12, 5)
    assert set(FACT_CLASSES) & set(TRIGGER_CLASSES) == {Forgotten, Heartbeat}
    assert set(EVENT_CLASSES) == {*FACT_CLASSES, *TRIGGER_CLASSES}


@pytest.mark.parametrize(("cls", "type_"), list(zip(EVENT_CLASSES, EVENT_TYPES, strict=True)), ids=EVENT_TYPES)
def test_the_data_of_a_type_has_the_fields_of_the_table(cls: type[Event], type_: str) -> None:
    """The data of each type has exactly the optional and required fields of the contract."""
    [data] = [field.type for field in msgspec.structs.fields(cls) if field.name == "data"]
    assert {f"{field.name}{'*' * field.required}" for field in msgspec.structs.fields(data)} == FIELDS[type_]


def test_what_the_envelope_leaves_out_has_its_default() -> None:
    """The domain defaults to `registration`, the correlation id to none, and the data to empty."""
    heartbeat = event("node.heartbeat", 3)
    assert (heartbeat.domain, heartbeat.correlation_id, heartbeat.position.previous) == ("registration", None, None)
    assert msgspec.to_builtins(heartbeat.data) == {"heartbeat_at": None, "liveness_deadline": None}


def test_an_event_knows_its_type_and_its_entity() -> None:
    """`type` is the name that was sent, and `key` names the entity."""
    initiated = event("registration.initiated", 1, domain="edge")
    assert (initiated.type, initiated.key) == ("registration.initiated", key_of(NODE, "edge"))


def test_an_event_holds_what_was_sent() -> None:
    """The fields of the envelope are read as values of their types."""
    sent = event_json("node.heartbeat", 1, position={"partition": "t-0", "offset": 9, "previous": 4})
    read = event("node.heartbeat", 1, position=sent["position"])
    assert str(read.event_id) == sent["event_id"]
    assert read.position == Position(partition="t-0", offset=9, previous=4)
    assert (read.occurred_at - START).total_seconds() == 1


def test_an_event_is_immutable() -> None:
    """A fact cannot be changed after it is read."""
    with pytest.raises(AttributeError):
        event("node.heartbeat", 1).domain = "other"  # type: ignore[misc]  # that it is read-only is the point
