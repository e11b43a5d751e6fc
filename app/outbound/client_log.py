"""The log of the Kafka client without repeats: while a broker is away, it logs the same many times a second."""

import logging
import re
import time
from collections.abc import Callable

SILENCE = 30.0  # seconds in which the same message is logged once
KINDS = 1000  # of messages that are remembered; beyond that, all are forgotten

TIMES = 3  # connections that a broker closes at once: more than a restart explains

_HUNG_UP = re.compile(r"Disconnected.* in state APIVERSION_QUERY|connecting to a SSL listener\?")
_VARIES = re.compile(r"\d+")  # ports, times and counts, which differ in repeats of a message


class RepeatFilter(logging.Filter):
    """Lets a message through once in `SILENCE` seconds, whatever its numbers. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record."""
        now, kind = self._clock(), _VARIES.sub("0", record.getMessage())
        if now < self._said.get(kind, float("-inf")) + SILENCE:
            return False
        if len(self._said) >= KINDS:
            self._said.clear()
        self._said[kind] = now
        return True


class TlsExpected(logging.Filter):
    """Turns repeated messages about a broker that closes connections at once into one warning that suggests TLS.

    A broker that expects TLS closes the connection of a client without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through; rewrite the record of the TIMES-th closed connection."""
        if _HUNG_UP.search(record.getMessage()):
            self._seen += 1
            if self._seen == TIMES:
                record.levelno, record.levelname = logging.WARNING, "WARNING"
                record.msg = (
                    "a Kafka broker closes connections: it may expect TLS (PQS_KAFKA_SECURITY=ssl or sasl_ssl)"
                )
                record.args = ()
        return True


client_log = logging.getLogger("app.bus.librdkafka")
client_log.addFilter(TlsExpected())
client_log.addFilter(RepeatFilter())
