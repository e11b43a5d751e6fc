"""The series of a consumer: how far it is behind, what it passed over, and how often its group changed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.store.watermarks import Advance, KafkaPartition

PLACE = ("topic", "partition")


class _Progress(Struct):
    """How far a partition is applied, and where it ends; `read_to` is in seconds since 1970, None if unknown."""

    offset: int
    end: int | None = None
    read_to: float | None = None


class ConsumerMetrics(Collector):
    """Counts what a consumer does. Each scrape computes the lag, so it grows while nothing is read."""

    def __init__(self, registry: CollectorRegistry, invalid: Callable[[int], None]) -> None:
        """`invalid` counts messages that are not valid events, among the other events."""
        self.invalid = invalid
        self._partitions: dict[KafkaPartition, _Progress] = {}
        self._rebalances = Counter(
            "pqs_consumer_rebalances",
            "Changes of the partitions that this consumer reads: assigned or revoked.",
            ["kind"],
            registry=registry,
        )
        self._missing = Counter(
            "pqs_consumer_missing_messages",
            "Messages that Kafka had removed before this consumer read them.",
            PLACE,
            registry=registry,
        )
        self._foreign = Counter(
            "pqs_consumer_foreign_messages",
            "Messages that are not events: tombstone (without a value), type (of others) or framed (by a schema "
            "registry).",
            ["kind"],
            registry=registry,
        )
        self._restarts = Counter(
            "pqs_consumer_restarts",
            "How often reading began again: lost_place, out_of_range (removed messages) or kafka (a failure).",
            ["reason"],
            registry=registry,
        )
        registry.register(self)

    # --- Called by the consumer's thread

    def assigned(self, partitions: Mapping[KafkaPartition, int]) -> None:
        """These partitions are read from now on; each is applied up to this offset."""
        self._rebalances.labels("assigned").inc()
        self._partitions |= {partition: _Progress(offset) for partition, offset in partitions.items()}

    def revoked(self, partitions: Iterable[KafkaPartition]) -> None:
        """These are not read any more."""
        self._rebalances.labels("revoked").inc()
        for each in partitions:
            self._partitions.pop(each, None)

    def ends(self, ends: Mapping[KafkaPartition, int]) -> None:
        """Partitions end before these offsets."""
        for partition, end in ends.items():
            if (known := self._partitions.get(partition)) is not None:
                known.end = end

    def missing(self, partition: KafkaPartition, messages: int) -> None:
        """So many messages of a partition were removed before they were read."""
        self._missing.labels(*_labels(partition)).inc(messages)

    # --- Called on the event loop

    def foreign(self, kind: str) -> None:
        """A message is not an event."""
        self._foreign.labels(kind).inc()

    def restart(self, reason: str) -> None:
        """Reading begins again."""
        self._restarts.labels(reason).inc()

    def written(self, advances: Sequence[Advance]) -> None:
        """Watermarks were moved, or confirmed."""
        ago = time.time() - time.monotonic()  # from the monotonic clock to the time of day
        for each in advances:
            known = self._partitions.get((each.topic, each.partition))
            if known is None:
                continue
            known.offset = each.offset
            if each.caught_up is not None:
                known.read_to = each.caught_up + ago
            elif each.message_at is not None:
                known.read_to = each.message_at.timestamp()

    def stopped(self) -> None:
        """Nothing is read for now."""
        self._partitions.clear()

    # --- Called by a scrape

    def collect(self) -> Iterator[Metric]:
        """The lag of each partition that is read."""
        messages = GaugeMetricFamily(
            "pqs_consumer_lag_messages", "Messages of a partition that are not applied yet.", labels=PLACE
        )
        seconds = GaugeMetricFamily(
            "pqs_consumer_lag_seconds",
            "Seconds since the time up to which all messages of a partition are applied.",
            labels=PLACE,
        )
        now = time.time()
        for partition, known in list(self._partitions.items()):
            if known.end is not None:
                messages.add_metric(_labels(partition), max(0, known.end - known.offset - 1))
            if known.read_to is not None:
                seconds.add_metric(_labels(partition), max(0.0, now - known.read_to))
        yield messages
        yield seconds


def _labels(partition: KafkaPartition) -> list[str]:
    return [partition[0], str(partition[1])]
