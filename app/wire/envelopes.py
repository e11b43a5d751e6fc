"""Envelopes of outgoing messages (CloudEvents 1.0), and their bytes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct, field

from app.domain.events import DEFAULT_DOMAIN

CONTENT_TYPE = "application/cloudevents+json"
# Structured mode (CloudEvents' Kafka binding, section 3.3): the value is the whole envelope, of this content type.
HEADERS = {"content-type": f"{CONTENT_TYPE}; charset=UTF-8".encode()}
SOURCE = "urn:pqs"  # unless PQS_SOURCE says otherwise
SEQUENCE_DIGITS = 19  # of 2^63-1; with leading zeros, sequences sort as text like numbers


class Envelope(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="specversion", tag="1.0"):
    """One event or intent as a subscriber reads it; the fields are written in this order.

    `id` stays the same when a message is published again; `source` and `id` together identify it. `subject` and
    `partitionkey` are the entity id, `time` is in UTC, `sequence` is the version of the entity's row after the event.
    `domain` and `correlationid` are our extensions, `traceparent` is that of CloudEvents' distributed tracing; the
    default domain and what is absent are not written.
    """

    id: UUID
    source: str
    type: str
    subject: UUID
    time: datetime
    partitionkey: UUID
    digits: Annotated[str, Meta(pattern=r"^[0-9]{1,19}$")] = field(name="sequence")  # in_digits(sequence)
    data: object  # a JSON object; a dict in an envelope that was read
    domain: str = DEFAULT_DOMAIN  # msgspec omits only this object, not an equal one: see written_domain
    correlationid: UUID | None = None
    traceparent: str | None = None  # the last: `traceparent_in` looks for it at the end

    @property
    def sequence(self) -> int:
        """The version of the entity's row after the event."""
        return int(self.digits)

    @property
    def key(self) -> bytes:
        """The key of the message, the same for all messages of one entity."""
        return str(self.partitionkey).encode()

    def to_json(self) -> bytes:
        """The envelope in CloudEvents' JSON format, which `POST /v1/events` accepts, too."""
        return _ENCODER.encode(self)

    @classmethod
    def from_json(cls, value: bytes) -> "Envelope":
        """The envelope that `to_json` wrote. Raises msgspec.DecodeError for other bytes."""
        envelope = _DECODER.decode(value)
        if not isinstance(envelope.data, dict):
            raise msgspec.ValidationError("Expected `object` - at `$.data`")
        return envelope


def in_digits(sequence: int) -> str:
    """A sequence as CloudEvents defines it: text that sorts like the numbers."""
    return str(sequence).zfill(SEQUENCE_DIGITS)


def written_domain(domain: str) -> str:
    """The domain, as the very object that an envelope omits if it is the default one."""
    return DEFAULT_DOMAIN if domain == DEFAULT_DOMAIN else domain


def to_lines(envelopes: Sequence[Envelope]) -> bytes:
    """The JSON of the envelopes, one line each, with line ends. Compact JSON holds no line breaks."""
    return _ENCODER.encode_lines(envelopes)


def key_of(envelope: bytes) -> bytes:
    """The key of a written envelope, found without parsing its JSON; any bytes, if it is not an envelope.

    The search takes a tenth of the time of parsing. The field's name cannot stand before it: within
    a JSON string its quotes would have backslashes, and the fields that are written before it hold no objects.
    """
    return envelope.partition(_KEY_AT)[2][:_KEY_LENGTH]


_KEY_AT = b'"partitionkey":"'
_KEY_LENGTH = 36  # bytes of a UUID as text
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Envelope)
