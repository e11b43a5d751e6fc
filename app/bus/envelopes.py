"""An outgoing event as a CloudEvents 1.0 envelope, and the bytes that a message carries."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from app.domain.events import DEFAULT_DOMAIN
from app.domain.positions import Number

CONTENT_TYPE = "application/cloudevents+json"
# Structured mode (CloudEvents' Kafka binding, section 3.3): the value is the whole envelope, this says what it is.
HEADERS: Mapping[str, bytes] = MappingProxyType({"content-type": f"{CONTENT_TYPE}; charset=UTF-8".encode()})
SEQUENCE_DIGITS = 19  # of 2^63-1: with leading zeros, sequences sort as text as they do as numbers


class Envelope(Struct, frozen=True, kw_only=True):
    """What a subscriber gets to know of one event.

    `id` stays the same when an event is published again, and `source` and `id` together name it. `subject` and
    `partitionkey` are the entity id, `sequence` is the version of the entity's row after the event. `domain` and
    `correlationid` are extensions of ours, written only where they say something.
    """

    id: UUID
    source: str
    type: str
    subject: str
    time: datetime
    partitionkey: str
    sequence: Number
    data: dict[str, object] = {}
    domain: str = DEFAULT_DOMAIN
    correlationid: UUID | None = None

    def to_json(self) -> bytes:
        """The envelope in CloudEvents' JSON format, which `POST /v1/events` takes too."""
        return _ENCODER.encode(
            _Written(
                id=self.id,
                source=self.source,
                type=self.type,
                subject=self.subject,
                time=self.time.astimezone(UTC),
                partitionkey=self.partitionkey,
                sequence=f"{self.sequence:0{SEQUENCE_DIGITS}d}",
                data=self.data,
                # msgspec leaves out what is the default itself; of a database, or of JSON, comes an equal text.
                domain=DEFAULT_DOMAIN if self.domain == DEFAULT_DOMAIN else self.domain,
                correlationid=self.correlationid,
            )
        )

    @classmethod
    def from_json(cls, value: bytes) -> "Envelope":
        """The envelope that `to_json` wrote. Raises msgspec.DecodeError for anything else."""
        written = _DECODER.decode(value)
        fields = {name: getattr(written, name) for name in cls.__struct_fields__}
        return cls(**fields | {"sequence": int(written.sequence)})

    @property
    def key(self) -> bytes:
        """The key of the message: what all events of one entity have in common."""
        return self.partitionkey.encode()


class _Written(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="specversion", tag="1.0"):
    """The envelope as it is written: the spec's `sequence` is text that sorts."""

    id: UUID
    source: str
    type: str
    subject: str
    time: datetime
    partitionkey: str
    sequence: Annotated[str, Meta(pattern=r"^[0-9]{1,19}$")]
    data: dict[str, object]
    domain: str = DEFAULT_DOMAIN
    correlationid: UUID | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Written)
