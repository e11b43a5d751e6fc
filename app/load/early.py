"""Lines that are not in: the early ones, which are sent again, and the refused ones, which are listed at the end."""

import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from app.domain.positions import Position
from app.errors import StartError
from app.load.source import InputLine
from app.wire.answers import LineResult

SHOWN = 50  # refused lines that are listed one by one
SHOWN_REASON = 300  # characters of a line's reason


def why(verdict: LineResult) -> str:
    """The reason why a line was refused, as one line."""
    faults = (
        f"{fault.pointer}: {fault.detail}" if fault.pointer != "#" else fault.detail for fault in verdict.errors
    )
    return f"{verdict.outcome}: {verdict.reason or '; '.join(faults)}"


class RefusedLines:
    """Refused lines, including the ones of `others`: their number, and the first SHOWN with their reasons."""

    def __init__(self, *others: "RefusedLines") -> None:
        self.total: int = sum(other.total for other in others)
        self._first: list[tuple[int, str]] = [line for other in others for line in other._first]  # noqa: SLF001 - its own class

    def add(self, number: int, reason: str) -> None:
        """Add a line. Lines may come in any order."""
        self.total += 1
        self._first.append((number, reason[:SHOWN_REASON] + "..." * (len(reason) > SHOWN_REASON)))
        if len(self._first) >= 2 * SHOWN:
            self._cut()

    def report(self) -> list[str]:
        """The lines by number, for people. Control characters are escaped."""
        self._cut()
        told = [f"line {number:,}: {reason}" for number, reason in self._first]
        if self.total > len(told):
            told.append(f"and {self.total - len(told):,} more")
        return ["".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in told]

    def _cut(self) -> None:
        self._first.sort()
        del self._first[SHOWN:]


class _Placed(msgspec.Struct):
    position: Position


def _key_of(verdict: LineResult) -> tuple[str, bytes]:
    """The entity of a line that was early. Its id as bytes: clients choose ids, and their hashes with them."""
    return verdict.domain or "", b"" if verdict.entity_id is None else verdict.entity_id.bytes


class Early:
    """Lines to send again. They wait in a temporary file; memory holds four numbers for each."""

    def __init__(self) -> None:
        self.refused = RefusedLines()
        with self._disk():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._end = 0
        self._places: dict[tuple[str, bytes], array[int]] = {}  # by domain and entity id

    def __len__(self) -> int:
        return self.refused.total

    def add(self, line: InputLine, verdict: LineResult) -> None:
        """Keep an early line. Raises MsgspecError if it has no position."""
        content = line.content or b""
        position = msgspec.json.decode(content, type=_Placed).position
        places = self._places.setdefault(_key_of(verdict), array("q"))
        places.extend((position.number, line.number, self._end, len(content)))
        with self._disk():
            self._file.write(content)
        self._end += len(content)
        self.refused.add(line.number, why(verdict))

    def in_order(self) -> Iterator[InputLine]:
        """The lines by domain, entity and position; lines with equal positions in the order of the input."""
        with self._disk():
            self._file.flush()
        for key in sorted(self._places):
            flat = self._places[key]
            for _, number, offset, size in sorted(zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)):
                yield InputLine(number, os.pread(self._file.fileno(), size, offset))

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):  # the disk may be full, and the buffered lines are not needed any more
            self._file.close()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StartError(f"cannot keep early lines in a temporary file: {error}") from None
