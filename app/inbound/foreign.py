"""Messages that are not events, which a consumer passes over: one line a minute says how many there were."""

import logging
import time

from app.errors import ForeignMessageError
from app.wire.messages import KafkaMessage

log = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two lines about messages that are not events


class ForeignCount:
    """The messages that were passed over since the last line of the log."""

    def __init__(self) -> None:
        self._number = 0
        self._told_at = -EVERY

    def add(self, message: KafkaMessage, why: ForeignMessageError) -> None:
        """Count a message; once a minute, log how many there were and the reason of the newest."""
        self._number += 1
        now = time.monotonic()
        if now < self._told_at + EVERY:
            return
        log.warning(
            "passed over %d messages that are not events, the last one at %s-%d offset %d: %s",
            self._number,
            message.topic,
            message.partition,
            message.offset,
            why,
        )
        self._number, self._told_at = 0, now
