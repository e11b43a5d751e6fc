"""Faults planted in the service itself, to show that the campaign finds such faults. Each patches the commands."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any
from uuid import UUID

from app.domain.events import EventBase, Name
from app.domain.registration import Registration
from app.domain.results import Result
from app.errors import PqsError
from app.projection.batching import Reader
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.store.outbox import Entry

LATER = 0.2  # seconds from an acknowledgement to the write
EACH = 10  # of so many batches one has no entries in the outbox, and of so many reads one returns an old row


def acknowledge_before_the_commit() -> None:
    """Answer with the outcomes that are foreseen, and write a moment later."""
    persist = Projector.persist
    writing = set[asyncio.Task[None]]()

    async def later(self: Projector, events: Sequence[EventBase], by_position: bool) -> None:
        await asyncio.sleep(LATER)
        with suppress(PqsError):
            await persist(self, events, by_position=by_position)

    async def early(
        self: Projector, events: Sequence[EventBase], *, by_position: bool = False, **others: Any
    ) -> list[Result]:
        if others.get("also") is not None:  # of the consumer
            return await persist(self, events, by_position=by_position, **others)
        results = await self.foresee(events, by_position=by_position)
        task = asyncio.create_task(later(self, events, by_position))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return results

    Projector.persist = early  # type: ignore[method-assign]  # it is planted


def lose_rows_of_the_outbox() -> None:
    """Write some batches without their entries in the outbox."""
    build, batches = EntryBuilder.build, count(1)

    def lossy(self: EntryBuilder, decisions: Sequence[object]) -> list[Entry]:
        entries = build(self, decisions)  # type: ignore[arg-type]  # of whatever row
        return [] if entries and next(batches) % EACH == 0 else entries

    EntryBuilder.build = lossy  # type: ignore[method-assign]  # it is planted


def let_versions_go_down() -> None:
    """Answer some reads with the row that was read first."""
    read, reads = Reader._read, count(1)
    first: dict[tuple[UUID, str], Registration] = {}

    async def stale(self: Reader, names: list[Name]) -> list[Registration | None]:
        rows = await read(self, names)
        for name, row in zip(names, rows, strict=True):
            if row is not None:
                first.setdefault(name, row)
        return [first.get(name) if next(reads) % EACH == 0 else row for name, row in zip(names, rows, strict=True)]

    Reader._read = stale  # type: ignore[method-assign]  # it is planted


# What is planted, and the checks of which one has to find it.
PLANTED = {
    acknowledge_before_the_commit: (
        "versions that went down",
        "acknowledged changes lost, or applied twice",
    ),
    lose_rows_of_the_outbox: ("messages lost or out of order on the bus",),
    let_versions_go_down: ("versions that went down",),
}
NAMES = {f"{each.__module__}:{each.__name__}": found for each, found in PLANTED.items()}
