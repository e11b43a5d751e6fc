"""The bus that the settings name, opened."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, assert_never

from app.outbound.bus import Bus
from app.outbound.kafka import DELIVERY_TIMEOUT, KafkaBus
from app.outbound.kafka_options import client_options, credentials_of
from app.outbound.memory import MemoryBus
from app.settings import BusKind, Settings


def open_bus(kind: Literal[BusKind.KAFKA, BusKind.MEMORY], settings: Settings) -> Bus:
    """A bus of this kind. Raises StartError for settings that the Kafka client refuses."""
    match kind:
        case BusKind.KAFKA:
            return kafka_bus(settings)
        case BusKind.MEMORY:
            return MemoryBus()
        case never:
            assert_never(never)


def kafka_bus(
    settings: Settings, *, delivery_timeout: timedelta = DELIVERY_TIMEOUT, creates_topics: bool = True
) -> KafkaBus:
    """The same of Kafka.

    Without `creates_topics` no broker makes a topic, as many do, with their own settings, for who only asks about it.
    """
    return KafkaBus(
        settings.kafka or "",
        delivery_timeout=delivery_timeout,
        options={"allow.auto.create.topics": str(creates_topics).lower(), **client_options(settings)},
        credentials=credentials_of(settings),
    )


async def close_all(buses: Sequence[Bus]) -> None:
    """Close all concurrently: each may take long while the broker is down."""
    await asyncio.gather(*(bus.close() for bus in buses))
