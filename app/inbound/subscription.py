"""The topics that a consumer reads: names and patterns, from the settings."""

import re
from collections.abc import Sequence

from app.errors import StartError
from app.settings import BusKind, Settings


class Subscription:
    """Names of topics, and patterns, which begin with `^`."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = list(topics)
        self._patterns = [re.compile(topic) for topic in topics if topic.startswith("^")]

    @classmethod
    def of(cls, settings: Settings) -> "Subscription":
        """Of PQS_TOPICS_IN. Raises StartError without it, and if the service's own topic is among the topics."""
        if settings.topics_in is None:
            raise StartError("PQS_TOPICS_IN is not set: the topics to read, as topic,topic")
        found = cls(settings.topics_in.split(","))
        if settings.bus is BusKind.KAFKA and found.reads(settings.topic_out):
            raise StartError(
                f"PQS_TOPICS_IN names {settings.topic_out}, which is PQS_TOPIC_OUT: what goes out would come in again"
            )
        if settings.topic_snapshots is not None and found.reads(settings.topic_snapshots):
            raise StartError(f"PQS_TOPICS_IN names {settings.topic_snapshots}, which is PQS_TOPIC_SNAPSHOTS")
        return found

    def reads(self, topic: str) -> bool:
        """Whether a topic is among them."""
        return topic in self.topics or any(pattern.match(topic) for pattern in self._patterns)
