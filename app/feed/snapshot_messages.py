"""The messages of snapshots: a row as the API gives it, or a tombstone, on the partition of its entity id."""

from collections.abc import Mapping, Sequence

import msgspec

from app.domain.events import DEFAULT_DOMAIN, Key
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.outbound.kafka import PlacedMessage
from app.outbound.partitioner import partition_of

VERSION, CHANGE = "version", "change"  # headers, decimal digits in ASCII

_encode = msgspec.json.Encoder().encode


def message_key(row: Registration) -> bytes:
    """The key of a row: its entity id, and outside the default domain `/` and the domain."""
    return (str(row.entity_id) if row.domain == DEFAULT_DOMAIN else f"{row.entity_id}/{row.domain}").encode()


class SnapshotMessages:
    """Makes messages for a topic of so many partitions.

    `before` are the numbers that it had before, as long as rows may still lie where these placed them. There they get
    a tombstone, with the version before theirs: so whoever keeps the greater version keeps the row.
    """

    def __init__(self, partitions: int, *, before: Sequence[int] = (), drop_expired: bool = False) -> None:
        self._partitions = partitions
        self._drop_expired = drop_expired
        self.before = list(before)

    def of(self, rows: Mapping[Key, Registration], changes: Mapping[Key, int]) -> list[PlacedMessage]:
        """The messages of these rows. `changes` are the ids of the changes that they are published for."""
        messages: list[PlacedMessage] = []
        for entity, row in rows.items():
            key = message_key(row)
            placed_by = str(row.entity_id).encode()
            partition = partition_of(placed_by, self._partitions)
            headers: list[tuple[str, str | bytes | None]] = [(VERSION, b"%d" % row.version)]
            if (change := changes.get(entity)) is not None:
                headers.append((CHANGE, b"%d" % change))
            value = None if self._is_gone(row) else _encode(row)
            messages.append(PlacedMessage(key, value, partition, headers))
            if self.before:
                messages += self._left(
                    key, row, {partition_of(placed_by, each) for each in self.before} - {partition}
                )
        return messages

    def _left(self, key: bytes, row: Registration, partitions: set[int]) -> list[PlacedMessage]:
        """Tombstones for the partitions that a row has left."""
        headers: list[tuple[str, str | bytes | None]] = [(VERSION, b"%d" % (row.version - 1))]
        return [PlacedMessage(key, None, partition, headers) for partition in sorted(partitions)]

    def _is_gone(self, row: Registration) -> bool:
        is_expired = row.current_state is RegistrationState.LIVENESS_EXPIRED
        return row.forgotten_at is not None or (self._drop_expired and is_expired)
