"""A message from Kafka as an event: its form is found by its headers, and its position is its place."""

from typing import Any
from uuid import UUID

import msgspec
import pytest

from app.domain.positions import Position
from app.errors import ForeignMessageError, InvalidInputError, UnreadableError
from app.wire.messages import KafkaMessage, entity_of, read_message
from tests.making import NODE, Json, event_json, node, when

EVENT = event_json("registration.initiated", 1)
ATTRIBUTES = {
    "specversion": "1.0",
    "id": EVENT["event_id"],
    "source": "/racks/12",
    "type": "registration.initiated",
    "subject": str(NODE),
    "time": EVENT["occurred_at"],
}
STRUCTURED = ATTRIBUTES | {"data": EVENT["data"]}
CE_HEADERS = [(f"ce_{name}", value.encode()) for name, value in ATTRIBUTES.items()]
JSON_TYPE = ("content-type", b"application/json")


def message(value: Json | bytes | None, headers: Any = ()) -> KafkaMessage:
    """A message at offset 42 of partition 7."""
    encoded = msgspec.json.encode(value) if isinstance(value, dict) else value
    return KafkaMessage("nodes", 7, 42, b"key", encoded, list(headers))


def without(event: Json, name: str) -> Json:
    """An event that lacks a field."""
    return {key: value for key, value in event.items() if key != name}


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (EVENT, []),
        (without(EVENT, "position"), []),
        (EVENT | {"position": {"partition": "elsewhere-1", "offset": 3, "previous": 2}}, []),
        (EVENT | {"position": "nowhere"}, [JSON_TYPE]),
        (EVENT, [("trace", b"\xff"), ("ce_none", None)]),
        (STRUCTURED, [("content-type", b"application/cloudevents+json; charset=UTF-8")]),
        (STRUCTURED | {"sequence": "7", "previous": "6"}, [("Content-Type", b"application/cloudevents+json")]),
        (STRUCTURED, []),
        (EVENT["data"], CE_HEADERS),
        (EVENT["data"], [*CE_HEADERS, JSON_TYPE, ("ce_sequence", b"9")]),
    ],
)
def test_every_form_is_the_same_event(value: Json, headers: Any) -> None:
    """Our own form and CloudEvents say the same, and stand where the message does."""
    event = read_message(message(value, headers))
    assert (str(event.event_id), event.type, event.entity_id) == (EVENT["event_id"], EVENT["type"], NODE)
    assert event.occurred_at == when(1)
    assert event.position == Position(partition="nodes-7", offset=42)
    assert msgspec.to_builtins(event.data)["node_type"] == "compute"


@pytest.mark.parametrize(
    ("value", "headers", "error", "said"),
    [
        (None, [], ForeignMessageError, "no value"),
        (EVENT | {"type": "invoice.paid"}, [], ForeignMessageError, "invoice.paid"),
        (STRUCTURED | {"type": "invoice.paid"}, [], ForeignMessageError, "invoice.paid"),
        (
            STRUCTURED | {"type": "invoice.paid"},
            [("content-type", b"application/cloudevents+json")],
            ForeignMessageError,
            "invoice.paid",
        ),
        (b"\xff\xfe", [*CE_HEADERS[:2], ("ce_type", b"invoice.paid")], ForeignMessageError, "invoice.paid"),
        (EVENT | {"type": "registration.began"}, [], InvalidInputError, "#/type"),
        (EVENT | {"type": 7}, [], InvalidInputError, "#/type"),
        (b"\0\0\0\0\x07" + msgspec.json.encode(EVENT), [], UnreadableError, "schema registry .* schema id 7"),
        (b"", [], UnreadableError, "empty"),
        (b"{", [], UnreadableError, "not JSON"),
        (b"[]", [], InvalidInputError, "expected"),
        (EVENT | {"color": "red"}, [], InvalidInputError, "#/color"),
        (without(EVENT, "event_id"), [], InvalidInputError, "#/event_id"),
        (without(STRUCTURED, "subject"), [], InvalidInputError, "#/subject"),
        (EVENT["data"], CE_HEADERS[1:], InvalidInputError, "#/header/ce_specversion"),
        (EVENT["data"], [*CE_HEADERS, CE_HEADERS[0]], InvalidInputError, "more than once"),
        (EVENT["data"], [*CE_HEADERS, ("ce_domain", b"\xff")], InvalidInputError, "not UTF-8"),
        (EVENT["data"], [*CE_HEADERS, ("content-type", b"text/plain")], InvalidInputError, "application/json"),
        (EVENT | {"entity_id": f"{node(1)}\0"}, [], InvalidInputError, "#/entity_id"),
    ],
)
def test_what_is_wrong_is_said(value: Any, headers: Any, error: type[Exception], said: str) -> None:
    """A message that is no event says what was expected, and where."""
    with pytest.raises(error, match=said):
        read_message(message(value, headers))


@pytest.mark.parametrize(
    ("value", "key", "entity_id"),
    [
        (msgspec.json.encode(EVENT | {"color": "red"}), b"", NODE),
        (msgspec.json.encode(STRUCTURED | {"time": "soon"}), b"", NODE),
        (b"{", str(NODE).encode(), NODE),
        (None, str(NODE).encode(), NODE),
        (b'{"entity_id": 7}', str(NODE).encode(), NODE),
        (b'{"entity_id": "nobody"}', str(NODE).encode(), NODE),
        (b"{", b"\xff", None),
        (None, None, None),
    ],
)
def test_a_message_without_an_event_still_has_an_entity(
    value: bytes | None, key: bytes | None, entity_id: UUID | None
) -> None:
    """The entity comes from the value as far as it can be read, else from the key."""
    found = entity_of(KafkaMessage("nodes", 7, 42, key, value, []))
    assert found == entity_id
