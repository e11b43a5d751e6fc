"""The history of a campaign: what its clients sent and saw, and the faults that were made, each in a line of a file.

All times are seconds of one monotonic clock, because all clients are in one process.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct

from tests.linearizability import Operation


class Answered(Struct, frozen=True, gc=False, tag_field="record"):
    """A request of a client and the status of its answer; 0 if none came."""

    client: str
    call: str  # the operation's id in the OpenAPI document
    begin: float
    end: float
    status: int


class Surprise(Struct, frozen=True, tag_field="record"):
    """An answer or a message that no correct service gives, in words."""

    client: str
    at: float
    words: str


class Sent(Struct, frozen=True, tag_field="record"):
    """An event that a client sent until it had an answer, or gave up.

    `outcome` is `applied`; `known` if an attempt without an answer had applied it; `unknown` if the client gave up.
    """

    client: str
    entity_id: UUID
    event_id: UUID
    type: str
    outcome: str
    versions: int  # by which it raises the row's version
    emitted: tuple[UUID, ...] = ()  # the events that follow from it, for the bus


class Seen(Struct, frozen=True, gc=False, tag_field="record"):
    """A version of an entity that a client was told: by the answer to a write, or by a read (0: no row)."""

    client: str
    entity_id: UUID
    begin: float
    end: float
    version: int


class Followed(Struct, frozen=True, gc=False, tag_field="record"):
    """A change that a follower of the feed received; `epoch` counts the follower's beginnings."""

    client: str
    epoch: int
    id: int
    entity_id: UUID
    version: int
    type: str
    outcome: str
    event_id: UUID | None


class Page(Struct, frozen=True, tag_field="record"):
    """A page that a follower received: from which service, after which token, and the ids of the changes."""

    client: str
    url: str
    begin: float
    next: str
    ids: tuple[int, ...]


class Measured(Struct, frozen=True, gc=False, tag_field="record"):
    """The resident memory of a command, in bytes."""

    name: str
    at: float
    resident: int


class Fault(Struct, frozen=True, tag_field="record"):
    """A fault that was made: between `begin` and `end`; from `back` on (if any) the database accepted connections."""

    number: int
    lane: str
    kind: str
    detail: str
    begin: float
    end: float
    back: float | None = None
    healthy: float | None = None  # when the steady service answered a read and a write again
    times: int = 1  # how often it was made, as hang-ups are made by the hundred


class Worked(Struct, frozen=True, tag_field="record"):
    """An operation on a workflow."""

    operation: Operation


Record = Answered | Surprise | Sent | Seen | Followed | Fault | Worked | Measured | Page
R = TypeVar("R", bound=Struct)


class History:
    """Records in the order of their completion, kept in memory and written to a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)
        self._file.write(msgspec.json.encode(record) + b"\n")

    def of(self, kind: type[R]) -> Iterator[R]:
        """The records of a kind, in order."""
        return (each for each in self.records if isinstance(each, kind))


def read(path: Path) -> list[Record]:
    """The records of a file."""
    decoder = msgspec.json.Decoder(Record)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]
