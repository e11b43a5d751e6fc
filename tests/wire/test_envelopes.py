"""Envelopes, read by the CloudEvents SDK as their receiver."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event

from app.wire.cloudevents import read_cloudevent
from app.wire.envelopes import HEADERS, Envelope, in_digits, key_of, written_domain
from tests.making import NODE, event

ID = UUID("0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1a01")
CORRELATION_ID = UUID("3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def envelope(**fields: Any) -> Envelope:
    """An envelope; `fields` override the usual ones."""
    usual: dict[str, Any] = {
        "id": ID,
        "source": "/pqs",
        "type": "registration.initiated",
        "subject": NODE,
        "time": NOON,
        "partitionkey": NODE,
        "digits": in_digits(7),
        "data": {"node_type": "compute"},
    }
    return Envelope(**usual | fields)


def test_the_sdk_reads_the_message() -> None:
    """The SDK reads a message with an envelope's headers, key and value as a complete CloudEvent."""
    read = from_kafka_event(KafkaMessage(HEADERS, envelope().key, envelope().to_json()))
    assert read.get_attributes() == {
        "specversion": "1.0",
        "id": str(ID),
        "source": "/pqs",
        "type": "registration.initiated",
        "subject": str(NODE),
        "time": NOON,
        "partitionkey": str(NODE),
        "sequence": "0000000000000000007",
    }
    assert read.get_data() == {"node_type": "compute"}


@pytest.mark.parametrize(
    "written",
    [
        envelope(),
        envelope(data={}),
        envelope(domain="other", correlationid=CORRELATION_ID, digits=in_digits(2**63 - 1)),
    ],
    ids=["usual", "without data", "with extensions"],
)
def test_what_is_written_is_read(written: Envelope) -> None:
    """Reading an envelope's JSON gives the same envelope."""
    assert Envelope.from_json(written.to_json()) == written


@pytest.mark.parametrize(
    "written",
    [
        envelope(),
        envelope(source='"partitionkey":"nobody"', type='\\"partitionkey":"nobody"'),
        envelope(data={"partitionkey": "nobody"}),
    ],
    ids=["usual", "its name in other fields", "its name in the data"],
)
def test_the_key_is_found_in_the_text(written: Envelope) -> None:
    """An envelope's key is found without parsing its JSON, whatever other content it has."""
    assert key_of(written.to_json()) == written.key == str(NODE).encode()


def test_an_envelope_can_be_posted() -> None:
    """The service accepts its own envelopes as events, with domain and correlation id."""
    posted = read_cloudevent(envelope(domain="other", correlationid=CORRELATION_ID).to_json())
    assert posted == event(
        "registration.initiated",
        7,
        event_id=str(ID),
        occurred_at="2026-01-01T12:00:00Z",
        domain="other",
        correlation_id=str(CORRELATION_ID),
    )


def test_the_extensions_are_left_out_where_they_say_nothing() -> None:
    """Neither the default domain nor an absent correlation id is written."""
    read = "registration ".strip()  # equal to the default, and another object, as what is read is
    for each in (envelope(), envelope(domain=written_domain(read))):
        assert not {"domain", "correlationid"} & msgspec.json.decode(each.to_json()).keys()


def test_sequences_sort_as_text() -> None:
    """The text of sequences sorts like their numbers."""
    numbers = [0, 9, 10, 99, 100, 2**63 - 1]
    texts = [msgspec.json.decode(envelope(digits=in_digits(number)).to_json())["sequence"] for number in numbers]
    assert texts == sorted(texts)


@pytest.mark.parametrize("value", [b"", b"{}", b'{"specversion":"0.3"}', b"nothing"])
def test_what_is_no_envelope_is_refused(value: bytes) -> None:
    """Text that is not an envelope is refused."""
    with pytest.raises(msgspec.DecodeError):
        Envelope.from_json(value)
