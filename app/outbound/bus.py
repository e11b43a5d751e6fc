"""What a bus is, for those who publish: the relay and nobody else."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from app.errors import BusError
from app.wire.envelopes import HEADERS, Envelope

Keyed = tuple[bytes | None, bytes]  # the key of a message, and its value


class Bus(Protocol):
    """Carries messages to topics, at least once.

    Messages with one key land in one partition of a topic, the same on every bus (`partitioner.py`), in the order in
    which they were handed over, as long as none of them fails. One that failed may be there nevertheless, and later
    ones may be there without it: who needs an order beyond failures awaits each message of a key before the next.
    """

    @abstractmethod
    async def publish_all(
        self, topic: str, messages: Sequence[Keyed], headers: Mapping[str, bytes]
    ) -> dict[int, BusError]:
        """Hand messages over, and return when the bus has each of them for good, or it has failed.

        What failed is returned, by its place in `messages`: a BusError when it is not known to be there, a
        MessageRefusedError when it never will be. Messages are taken in before the first wait, so tasks that publish
        keep the order in which they were made. A call that is cancelled may still be delivered, but is not begun.
        """

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Publish one message. Raises what `publish_all` returns for it."""
        failed = await self.publish_all(topic, [(key, value)], headers)
        if failed:
            raise failed[0]

    async def publish_envelope(self, envelope: Envelope, topic: str, *, key: bytes | None = None) -> None:
        """Publish an envelope in CloudEvents' structured mode; without a key its `partitionkey` is the key."""
        await self.publish(topic, envelope.key if key is None else key, envelope.to_json(), HEADERS)

    @abstractmethod
    async def close(self) -> None:
        """Give what was handed over the time to get there, and end. Whoever still waits then gets a BusError."""
