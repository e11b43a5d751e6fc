"""Reading from a real Kafka with TLS and SASL, with the settings of `pqs consume`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from app.parts import Parts
from tests.broker import Broker
from tests.consuming import produce, running, taken, until
from tests.making import life, node
from tests.secure_kafka import HAS_SECURE_KAFKA, LISTENERS, REAUTHENTICATED, Access, access

pytestmark = HAS_SECURE_KAFKA


@asynccontextmanager
async def reading(way: Access, topic: str, url: str) -> AsyncIterator[None]:
    """Run a consumer that reads a topic into a database within this context."""
    settings = way.settings(topics_in=topic, consumer_group=uuid4().hex, database_url=url, bus="off")
    async with Parts(settings, url) as parts, running(parts.consumer()):
        yield


@pytest.mark.parametrize(("security", "mechanism"), LISTENERS)
async def test_messages_come_by_every_listener(
    security: str, mechanism: str | None, kafka: Broker, topic: str, database_url: str, tmp_path: Path
) -> None:
    """The topic's messages are applied through each listener."""
    produce(kafka, topic, life())
    async with reading(access(security, mechanism, tmp_path), topic, database_url):
        await until(database_url, *taken(5))


async def test_a_password_changes_while_messages_come(
    kafka: Broker, topic: str, database_url: str, tmp_path: Path
) -> None:
    """When the broker authenticates the consumer again it sends the new password, and reads on."""
    way = access("sasl_plaintext", "SCRAM-SHA-512", tmp_path)
    produce(kafka, topic, life(node(1)))
    async with reading(way, topic, database_url):
        await until(database_url, *taken(5))
        way.rotate()
        await asyncio.sleep(2 * REAUTHENTICATED)
        produce(kafka, topic, life(node(2)))
        await until(database_url, *taken(10))
