"""What a projector and a sweep log, and who is told when it is committed."""

from collections.abc import Callable, Mapping, Sequence, Sized
from datetime import datetime, timedelta

from app.domain.changes import Change, ChangeOutcome, Log, Logging, change, log_of
from app.domain.decider import Decision
from app.domain.folding import Save
from app.domain.registration import Registration
from app.settings import Settings
from app.store import changes
from app.store.changes import KEEP

REBASED = "registration.rebased"  # the type of a change that no event made


class ChangeLog:
    """The change log as the settings have it: which changes it takes, with rows or without, for how long."""

    def __init__(self, logging: Logging = Logging.TRANSITIONS, *, rows: bool = False, keep: timedelta = KEEP) -> None:
        self.rows = rows
        self.slice_seconds = changes.slice_seconds(keep)
        self.log: Log | None = log_of(logging, rows=rows)
        self.on_commit: Callable[[], None] | None = None  # called when changes are committed: it wakes followers
        self.on_save: Callable[[Sequence[Save[Registration]]], None] | None = None  # with all rows that are committed

    def made(
        self,
        outcome: ChangeOutcome,
        decisions: Sequence[Decision[Registration]],
        before: Sequence[Registration | None],
        reason: str | None = None,
    ) -> list[Change]:
        """The changes of what the service decided by itself or for an operator, from the rows as they were."""
        if self.log is None:
            return []
        return [
            change(row, each.row, event.event_id, event.type, outcome, event.occurred_at, reason, rows=self.rows)
            for row, each in zip(before, decisions, strict=True)
            for event in each.events[-1:]
        ]

    def rebased(self, before: Registration, after: Registration, now: datetime) -> list[Change]:
        """The change of an entity that was moved to another track by hand; of a tombstone none is logged."""
        if self.log is None or after.forgotten_at is not None:
            return []
        return [change(before, after, None, REBASED, ChangeOutcome.REBASED, now, rows=self.rows)]

    def given(self, some: Sequence[Change]) -> Mapping[str, object] | None:
        """What the statement is given that writes the rows of these changes; None for no change."""
        return changes.given(some, self.slice_seconds) if some else None

    def saved(self, saves: Sequence[Save[Registration]]) -> None:
        """Say that these rows are committed, logged or not, so that who waits for them is told at once."""
        if self.on_save is not None:
            self.on_save(saves)

    def committed(self, some: Sized) -> None:
        """Say that changes, or the decisions that made them, are committed, so that followers are told at once."""
        if some and self.log is not None and self.on_commit is not None:
            self.on_commit()


def change_log_of(settings: Settings) -> ChangeLog:
    """The change log that these settings want."""
    return ChangeLog(settings.changes, rows=settings.changes_rows, keep=timedelta(seconds=settings.changes_keep))
