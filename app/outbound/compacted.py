"""The compacted topic of snapshots: its shape, and the messages for it.

A message has a key, and the partition of its entity id: all domains of an entity share a partition. So the partition
is chosen here, and not from the key.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # not in its __all__
from msgspec import Struct

from app.errors import BusError, StartError
from app.outbound.client_log import client_log
from app.outbound.kafka import KafkaBus, PlacedMessage
from app.outbound.kafka_options import client_options
from app.settings import Settings

log = logging.getLogger(__name__)

ANSWER_WITHIN = 2.0  # seconds that a broker has to answer
COMPACT = "compact"
POLICY = "cleanup.policy"


class TopicShape(Struct, frozen=True):
    """What Kafka says of a topic; `topic_id` (KIP-516) is None where it does not tell."""

    partitions: int
    topic_id: str | None


class CompactedTopic:
    """One topic, in which Kafka keeps the last message of each key."""

    def __init__(self, name: str, settings: Settings, bus: KafkaBus) -> None:
        self.name = name
        self._settings = settings
        self._bus = bus
        self._tells = True  # what is more than partitions; some brokers never do, and some not to us

    async def look(self) -> TopicShape:
        """The topic's shape now.

        Raises StartError, which names the topic, where it is not there or is not compacted, and BusError when no
        broker answers. Where a broker does not tell how a topic is cleaned up, a warning says so.
        """
        return await asyncio.to_thread(self._look)

    def _look(self) -> TopicShape:
        # Each look has a client of its own: looks are rare, and passwords change.
        options: dict[str, Any] = {"bootstrap.servers": self._settings.kafka or "", "logger": client_log}
        admin = AdminClient(options | client_options(self._settings))
        partitions = self._bus.partitions_of(self.name, ANSWER_WITHIN)
        if partitions is None:
            raise StartError(f"PQS_TOPIC_SNAPSHOTS: there is no topic {self.name}; create it with {POLICY}={COMPACT}")
        policy = self._policy(admin)
        if policy is not None and COMPACT not in policy.split(","):
            raise StartError(
                f"PQS_TOPIC_SNAPSHOTS: the topic {self.name} is not compacted ({POLICY} is {policy}) and "
                f"would lose rows; set its {POLICY} to {COMPACT}"
            )
        return TopicShape(partitions, self._id(admin))

    def _policy(self, admin: AdminClient) -> str | None:
        if not self._tells:
            return None
        resource = ConfigResource(ConfigResource.Type.TOPIC, self.name)
        try:
            [asked] = admin.describe_configs([resource], request_timeout=ANSWER_WITHIN).values()
            return str(asked.result(ANSWER_WITHIN)[POLICY].value)
        except (KafkaException, TimeoutError) as error:
            said = "Kafka does not say whether the topic %s is compacted, as it must be: %s"
            log.warning(said, self.name, str(error) or "no answer")
            self._tells = False
            return None

    def _id(self, admin: AdminClient) -> str | None:
        if not self._tells:
            return None
        try:
            [asked] = admin.describe_topics(TopicCollection([self.name]), request_timeout=ANSWER_WITHIN).values()
            return str(asked.result(ANSWER_WITHIN).topic_id)
        except (KafkaException, TimeoutError):
            return None

    async def publish(self, messages: Sequence[PlacedMessage]) -> dict[int, BusError]:
        """Publish messages: those that failed, as `Bus.publish_all` returns them."""
        return await self._bus.publish_placed(self.name, messages)

    async def close(self) -> None:
        """Close the bus (see Bus)."""
        await self._bus.close()
