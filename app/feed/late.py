"""Reads that cannot have what they wait for."""

from collections.abc import Sequence

from app.domain.positions import Position
from app.domain.registration import Registration
from app.errors import PqsError
from app.wire.problems import Reached


class OtherTrackError(PqsError):
    """A read waits for a sequence, and the entity's row stands in a partition, at `stands_at`."""

    def __init__(self, message: str, stands_at: Position) -> None:
        super().__init__(message)
        self.stands_at = stands_at


class LateError(PqsError):
    """A read waited in vain for what it demands at least.

    `current` is the row, None without one; `watermarks` are those of the partitions that it waits for.
    """

    def __init__(
        self, message: str, *, current: Registration | None = None, watermarks: Sequence[Reached] | None = None
    ) -> None:
        super().__init__(message)
        self.current = current
        self.watermarks = watermarks
