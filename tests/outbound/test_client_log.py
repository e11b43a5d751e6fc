"""The log of the Kafka client: a repeated message is logged only from time to time."""

import logging

from app.outbound.client_log import KINDS, SILENCE, RepeatFilter


def record(message: str, *arguments: object) -> logging.LogRecord:
    """A record as the client makes one."""
    return logging.LogRecord("app", logging.ERROR, "", 0, message, arguments, None)


def test_the_same_is_said_once_in_a_while() -> None:
    """A message that differs only in numbers is a repeat; another message, or the same after a while, is logged."""
    now = [0.0]
    repeats = RepeatFilter(lambda: now[0])
    assert repeats.filter(record("refused after %dms", 1))
    assert not repeats.filter(record("refused after %dms", 27))
    assert repeats.filter(record("timed out"))
    now[0] = SILENCE
    assert repeats.filter(record("refused after %dms", 3))


def test_what_was_said_is_forgotten_before_it_is_too_much() -> None:
    """A client that never repeats a message does not fill the memory."""
    repeats = RepeatFilter(lambda: 0.0)
    assert all(repeats.filter(record("x" * length)) for length in range(KINDS))
    assert repeats.filter(record("something else"))
    assert len(repeats._said) == 1
