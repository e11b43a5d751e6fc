"""What a Kafka cluster says of topics: their partitions and ids, and where a partition begins and ends."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from app.errors import StartError
from app.store.watermarks import FoundPartition, KafkaPartition, PartitionProgress

log = logging.getLogger(__name__)

LOOK = 2.0  # seconds between two looks for new partitions and topics
ANSWER = 1.0  # seconds that a broker has to answer
SILENT = 10.0  # seconds without an answer after which Kafka counts as away: some looks are late, or fail
OTHER_ID = "it has another id"
# The beginnings of the names of settings that are not for consumers only.
_OF_EVERY_CLIENT = (
    "bootstrap.",
    "client.",
    "security.",
    "sasl.",
    "ssl.",
    "enable.ssl.",
    "socket.",
    "oauth",
    "logger",
)


class TopicRestartedError(StartError):
    """A topic was deleted and created again: the offsets of its messages no longer follow those that were read."""

    def __init__(self, topic: str, why: str) -> None:
        super().__init__(
            f"topic {topic} was deleted and created again ({why}). Nothing of it is applied: offsets that were read "
            f"before would count as repeats. To read it from its beginning: pqs consume --restarted {topic}"
        )
        self.topic = topic


class GapError(StartError):
    """Kafka has removed messages before they were read, and PQS_GAPS says to stop then."""


class ClusterTopics:
    """The topics of a subscription, as the cluster has them. Its methods run in the consumer's thread."""

    def __init__(self, client: Client, settings: Mapping[str, object], names: Sequence[str]) -> None:
        """`names` may be patterns, which begin with `^`."""
        self._client = client
        self._settings: dict[str, Any] = {
            name: value for name, value in settings.items() if name.startswith(_OF_EVERY_CLIENT)
        }
        self._names = [name for name in names if not name.startswith("^")]
        self._patterns = [re.compile(name) for name in names if name.startswith("^")]
        self._known: set[KafkaPartition] = set()
        self._ids: dict[str, str] = {}
        self._looked_at = 0.0  # by the monotonic clock
        self._answered_at = time.monotonic()
        self._admin: AdminClient | None = None
        self._tells_ids = True

    def new_partitions(self) -> list[FoundPartition]:
        """Partitions that have appeared since the last look; none between two looks, or when no broker answers.

        Raises TopicRestartedError when a topic has another id than at an earlier look.
        """
        now = time.monotonic()
        if now < self._looked_at + LOOK:
            return []
        self._looked_at = now
        try:
            shapes = [self._client.list_topics(name, timeout=ANSWER) for name in self._names]
            if self._patterns:
                shapes.append(self._client.list_topics(timeout=ANSWER))
        except KafkaException as error:
            log.debug("Kafka did not say which partitions there are: %s", error)
            return []
        self._answered_at = time.monotonic()
        there = {
            (topic, number)
            for shape in shapes
            for topic, about in shape.topics.items()
            if about.error is None and self._is_read(topic)
            for number in about.partitions
        }
        ids = self.ids({topic for topic, _ in there})
        for topic, id_ in ids.items():
            if self._ids.setdefault(topic, id_) != id_:
                raise TopicRestartedError(topic, OTHER_ID)
        new = there - self._known
        self._known |= there
        return [FoundPartition(topic, number, ids.get(topic)) for topic, number in sorted(new)]

    def trouble(self) -> str | None:
        """What keeps a consumer from reading: Kafka does not answer, or has none of the topics."""
        silence = time.monotonic() - self._answered_at
        if silence > SILENT:
            return f"Kafka has not answered for {silence:.0f} s"
        return None if self._known else "Kafka has none of the topics to read"

    def _is_read(self, topic: str) -> bool:
        return topic in self._names or any(pattern.match(topic) for pattern in self._patterns)

    def ids(self, topics: set[str]) -> dict[str, str]:
        """The ids of topics (KIP-516), as far as a broker tells them. A topic that is created again has another."""
        if not topics or not self._tells_ids:
            return {}
        if self._admin is None:
            if self._client.list_topics(timeout=ANSWER).controller_id < 0:  # nobody could answer
                self._tells_ids = False
                return {}
            self._admin = AdminClient(self._settings)
        try:
            asked = self._admin.describe_topics(TopicCollection(sorted(topics)), request_timeout=ANSWER)
            found = {topic: future.result(ANSWER) for topic, future in asked.items()}
        except (KafkaException, TimeoutError) as error:
            log.debug("Kafka did not say which ids its topics have: %s", error)
            return {}
        return {topic: str(about.topic_id) for topic, about in found.items()}

    def bounds(self, partition: KafkaPartition) -> tuple[int, int] | None:
        """The offsets of the first message of a partition and after its last one; None when no broker answers."""
        try:
            return self._client.get_watermark_offsets(TopicPartition(*partition), timeout=ANSWER)
        except KafkaException as error:
            log.warning("Kafka did not say where %s-%d begins and ends: %s", *partition, error)
            return None


def check_ids(found: Sequence[FoundPartition], progress: Mapping[KafkaPartition, PartitionProgress]) -> None:
    """Raises TopicRestartedError for a topic that has another id than when it was first read."""
    for each in found:
        known = progress.get((each.topic, each.partition))
        if known is not None and each.topic_id is not None and known.topic_id not in {None, each.topic_id}:
            raise TopicRestartedError(each.topic, OTHER_ID)
