"""An outgoing event as a CloudEvents 1.0 envelope, and the bytes that a message carries."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct, field

from app.domain.events import DEFAULT_DOMAIN

CONTENT_TYPE = "application/cloudevents+json"
# Structured mode (CloudEvents' Kafka binding, section 3.3): the value is the whole envelope, this says what it is.
HEADERS = {"content-type": f"{CONTENT_TYPE}; charset=UTF-8".encode()}
SEQUENCE_DIGITS = 19  # of 2^63-1: with leading zeros, sequences sort as text as they do as numbers


class Envelope(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="specversion", tag="1.0"):
    """What a subscriber gets to know of one event, field by field as it is written.

    `id` stays the same when an event is published again, and `source` and `id` together name it. `subject` and
    `partitionkey` are the entity id, `time` is in UTC, `sequence` is the version of the entity's row after the event.
    `domain` and `correlationid` are extensions of ours, written only where they say something.
    """

    id: UUID
    source: str
    type: str
    subject: UUID
    time: datetime
    partitionkey: UUID
    digits: Annotated[str, Meta(pattern=r"^[0-9]{1,19}$")] = field(name="sequence")  # in_digits(sequence)
    data: object  # what is a JSON object: a dict where it was read
    domain: str = DEFAULT_DOMAIN  # msgspec leaves out this very object, not an equal one: see written_domain
    correlationid: UUID | None = None

    @property
    def sequence(self) -> int:
        """The version of the entity's row after the event, as a number."""
        return int(self.digits)

    @property
    def key(self) -> bytes:
        """The key of the message: what all events of one entity have in common."""
        return str(self.partitionkey).encode()

    def to_json(self) -> bytes:
        """The envelope in CloudEvents' JSON format, which `POST /v1/events` takes too."""
        return _ENCODER.encode(self)

    @classmethod
    def from_json(cls, value: bytes) -> "Envelope":
        """The envelope that `to_json` wrote. Raises msgspec.DecodeError for anything else."""
        envelope = _DECODER.decode(value)
        if not isinstance(envelope.data, dict):
            raise msgspec.ValidationError("Expected `object` - at `$.data`")
        return envelope


def in_digits(sequence: int) -> str:
    """A sequence as the spec has it: text that sorts as the numbers do."""
    return str(sequence).zfill(SEQUENCE_DIGITS)


def written_domain(domain: str) -> str:
    """A domain that an envelope leaves out if it is the default one, wherever the text came from."""
    return DEFAULT_DOMAIN if domain == DEFAULT_DOMAIN else domain


def to_lines(envelopes: Sequence[Envelope]) -> bytes:
    """The JSON of each envelope, a line for each, with its end. JSON itself has no line break in it."""
    return _ENCODER.encode_lines(envelopes)


def key_of(envelope: bytes) -> bytes:
    """The key of a written envelope, without parsing its JSON; the beginning of nonsense where it is no envelope.

    To search for it is a tenth of the work of parsing. The name of the field is nowhere before it: a quote within a
    JSON string has a backslash before it, and the fields that are written before this one hold no objects.
    """
    return envelope.partition(_KEY_AT)[2][:_KEY_LENGTH]


_KEY_AT = b'"partitionkey":"'
_KEY_LENGTH = 36  # bytes of a UUID as text
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Envelope)
