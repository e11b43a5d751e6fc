"""The interface of a bus. Only the relay publishes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from app.errors import BusError
from app.wire.envelopes import HEADERS, Envelope

Keyed = tuple[bytes | None, bytes]  # the key of a message, and its value


class Bus(Protocol):
    """Carries messages to topics, at least once.

    Messages with the same key go to the same partition of a topic, the same on every bus (`partitioner.py`), in the
    order in which they were handed over, unless one fails. A failed message may have arrived nevertheless, and later
    ones may have arrived without it. To keep the order despite failures, await each message of a key before the next.
    """

    @abstractmethod
    async def publish_all(
        self, topic: str, messages: Sequence[Keyed], headers: Mapping[str, bytes]
    ) -> dict[int, BusError]:
        """Hand over messages, and return when each has arrived for good or has failed.

        The failures are returned, by their index in `messages`: a BusError for a message that may not have arrived, a
        MessageRefusedError for one that never will. Messages are accepted before the first wait, so tasks that
        publish keep the order in which they were created. The messages of a cancelled call may still be delivered.
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
        """Give the messages under way some time to arrive, and end. Calls that still wait then get a BusError."""
