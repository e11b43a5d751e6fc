"""What a bus is, for those who publish: the relay and nobody else."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from app.bus.envelopes import HEADERS, Envelope
from app.errors import BusError

# Told once what became of a message, on the event loop: None when the bus has it for good.
Reported = Callable[[BusError | None], object]


class Bus(Protocol):
    """Carries messages to topics, at least once.

    Messages with one key land in one partition of a topic, the same on every bus (`partitioner.py`), in the order in
    which `publish` was called, as long as none of them fails. One that failed may be there nevertheless, and later
    ones may be there without it: who needs an order beyond failures awaits each message of a key before the next.
    """

    @abstractmethod
    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: dict[str, bytes], reported: Reported
    ) -> None:
        """Take a message in, and tell `reported` later what `publish` says, never within this call. Nothing waits
        here for room: the caller bounds how many messages are on their way at once.
        """

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: dict[str, bytes]) -> None:
        """Hand a message over, and return when the bus has it for good.

        It is taken in before the first wait, so tasks that publish keep the order in which they were made. A call
        that is cancelled may still be delivered. Raises BusError when it is not known to be there;
        MessageRefusedError when it never will be.
        """
        report: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def reported(error: BusError | None) -> None:
            if report.done():  # whoever waited is gone
                return
            if error is None:
                report.set_result(None)
            else:
                report.set_exception(error)

        self.send(topic, key, value, headers, reported)
        await report

    async def publish_envelope(self, envelope: Envelope, topic: str, *, key: bytes | None = None) -> None:
        """Publish an envelope in CloudEvents' structured mode; without a key its `partitionkey` is the key."""
        await self.publish(topic, envelope.key if key is None else key, envelope.to_json(), HEADERS)

    @abstractmethod
    async def close(self) -> None:
        """Give what was handed over the time to get there, and end. Whoever still waits then gets a BusError."""
