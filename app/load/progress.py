"""The output of a load for people: a bar or lines of progress while it runs, and the report at the end."""

import math
import os
import time
from collections.abc import Callable
from typing import TextIO

from app.load.loader import OUTCOMES, Loader

REDRAW = 0.1  # seconds between two updates of the progress bar
PLAIN_LINE = 1.0  # seconds between two lines of progress without a terminal
BAR = 10  # characters


class Progress:
    """The progress: on a terminal a bar that is redrawn in place, elsewhere a line each second."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._on_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._between = REDRAW if self._on_terminal else PLAIN_LINE
        self._began = clock()
        self._shown_at = -math.inf if self._on_terminal else self._began
        self._drawn = 0

    @property
    def seconds(self) -> float:
        """The time since the beginning."""
        return self._clock() - self._began

    def show(self, loader: Loader, share: float | None) -> None:
        """Show the progress of the loader, unless it was shown just now."""
        now = self._clock()
        if now - self._shown_at < self._between:
            return
        self._shown_at = now
        parts = [] if share is None else [f"{share:4.0%}"]
        if self._on_terminal and share is not None:
            done = round(share * BAR)
            parts.insert(0, f"[{'#' * done}{'-' * (BAR - done)}]")
        parts += [f"{loader.received:,} lines", _rate(loader.sent, self.seconds)]
        parts.append(", ".join(f"{loader.counts[name]:,} {name}" for name in OUTCOMES if loader.counts[name]))
        if self._on_terminal:
            self._draw("  ".join(parts))
        else:
            self._write("  ".join(parts).strip() + "\n")

    def say(self, message: str) -> None:
        """Write a line that stays."""
        self.end()
        self._write(message + "\n")

    def end(self) -> None:
        """Remove the bar."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _draw(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            columns = 80
        text = text[: columns - 1]
        self._write("\r" + text.ljust(self._drawn))
        self._drawn = len(text)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _rate(lines: int, seconds: float) -> str:
    return f"{lines / max(seconds, 0.001):,.0f}/s"


def summary(loader: Loader, seconds: float) -> str:
    """The report: the number of lines by outcome, and the speed."""
    outcomes = ", ".join(f"{loader.counts[name]:,} {name}" for name in OUTCOMES)
    took = f"in {seconds:.1f} s ({_rate(loader.received, seconds)})"
    told = f"{loader.received:,} received: {outcomes} {took}"
    if loader.repeated:
        told += f"\n{loader.repeated:,} of the duplicate and stale lines were sent again after a failed request,"
        told += " which may have applied them"
    return told
