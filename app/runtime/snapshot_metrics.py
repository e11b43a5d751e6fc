"""The series of the publisher of snapshots."""

import time
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge


class SnapshotMetrics:
    """Counts what a publisher sends, and says how far it is behind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, told: str, mode: Literal["livemax", "livesum"] = "livemax") -> Gauge:
            return Gauge(name, told, registry=registry, multiprocess_mode=mode)

        published = Counter(
            "pqs_snapshots_published",
            "Messages that the topic of snapshots has taken: row, tombstone, or refused (for good: see the log).",
            ["kind"],
            registry=registry,
        )
        self._kinds = {kind: published.labels(kind) for kind in ("row", "tombstone", "refused")}
        self._at_work = gauge(
            "pqs_snapshots_publishers", "Publishers that are at work: 1 for all processes together.", "livesum"
        )
        self._lag = gauge(
            "pqs_snapshots_lag_seconds", "Seconds since the oldest change that is not published; 0 without one."
        )
        self._bootstrapping = gauge("pqs_snapshots_bootstrapping", "1 while all rows are being published.")
        self._rows = gauge("pqs_snapshots_bootstrap_rows", "Rows that the last bootstrap has published so far.")

    def published(self, rows: int, tombstones: int, refused: int) -> None:
        """So many messages have arrived, and so many were refused for good."""
        for kind, number in (("row", rows), ("tombstone", tombstones), ("refused", refused)):
            self._kinds[kind].inc(number)

    def standing(self, *, bootstrapping: bool, rows: int, oldest: float | None) -> None:
        """This publisher is at work. `oldest`: when the oldest unpublished change was made, in seconds since 1970."""
        self._at_work.set(1)
        self._lag.set(0.0 if oldest is None else max(0.0, time.time() - oldest))
        self._bootstrapping.set(bootstrapping)
        self._rows.set(rows)

    def resting(self) -> None:
        """Another publisher is at work, or none is."""
        for each in (self._at_work, self._lag, self._bootstrapping):
            each.set(0)
