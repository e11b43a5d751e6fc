"""What a bus is, for those who publish: the relay and nobody else."""

import asyncio
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol

from app.bus.envelopes import HEADERS, Envelope


class Bus(Protocol):
    """Carries messages to topics, at least once.

    Messages with one key land in one partition of a topic, the same on every bus (`partitioner.py`), in the order in
    which `publish` was called, as long as none of them fails. One that failed may be there nevertheless, and later
    ones may be there without it: who needs an order beyond failures awaits each message of a key before the next.
    """

    @abstractmethod
    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> "asyncio.Future[None]":
        """Take a message in, and say later what `publish` says. Nothing waits here for room: the caller bounds how
        many messages are on their way at once.
        """

    @abstractmethod
    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Hand a message over, and return when the bus has it for good.

        It is taken in before the first wait, so tasks that publish keep the order in which they were made. A call
        that is cancelled may still be delivered. Raises BusError when it is not known to be there;
        MessageRefusedError when it never will be.
        """

    async def publish_envelope(self, envelope: Envelope, topic: str, *, key: bytes | None = None) -> None:
        """Publish an envelope in CloudEvents' structured mode; without a key its `partitionkey` is the key."""
        await self.publish(topic, envelope.key if key is None else key, envelope.to_json(), HEADERS)

    @abstractmethod
    async def close(self) -> None:
        """Give what was handed over the time to get there, and end. Whoever still waits then gets a BusError."""
