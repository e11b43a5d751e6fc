"""The lines of a file or a pipe, and their division into requests."""

import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from app.errors import StartError
from app.wire.events import CHUNK_LINES, MAX_LINE

CHUNK_BYTES = 2 * 1024 * 1024  # of lines in one request; its last line may exceed this


class InputLine(NamedTuple):
    """A line that is not blank: its number in the input, from 1, and its bytes; None if it is too long."""

    number: int
    content: bytes | None


class _Readable(Protocol):
    def readline(self, size: int, /) -> bytes: ...


class Source:
    """The lines of a file, or with `-` of standard input; gzip and xz are recognized by name or first bytes.

    Raises StartError, which names the file, if it cannot be opened, read or unpacked.
    """

    def __init__(self, name: str) -> None:
        self._name = "standard input" if name == "-" else name
        self._number = 0
        with self._readable():
            self._raw = os.fdopen(0, "rb", closefd=False) if name == "-" else Path(name).open("rb")  # noqa: SIM115 - see close()
            status = os.fstat(self._raw.fileno())
            self._size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            magic = self._raw.peek(6)
        self._lines: _Readable = self._raw
        if name.endswith(".gz") or magic.startswith(b"\x1f\x8b"):
            self._lines = gzip.GzipFile(fileobj=self._raw)
        elif name.endswith(".xz") or magic.startswith(b"\xfd7zXZ"):
            self._lines = lzma.LZMAFile(self._raw)  # noqa: SIM115 - holds nothing open beside _raw

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._raw.close()

    def share(self) -> float | None:
        """The share of the file that has been read, from 0 to 1; None if its size is unknown."""
        return min(self._raw.tell() / self._size, 1.0) if self._size else None

    def lines(self) -> Iterator[InputLine]:
        """The lines that are not blank. At most MAX_LINE + 1 bytes of a line are in memory."""
        while content := self._readline():
            self._number += 1
            ended = content.endswith(b"\n")
            if len(content) > MAX_LINE and not ended:
                while not ended and (rest := self._readline()):
                    ended = rest.endswith(b"\n")
                yield InputLine(self._number, None)
            elif content.strip():
                yield InputLine(self._number, content if ended else content + b"\n")

    def _readline(self) -> bytes:
        with self._readable():
            return self._lines.readline(MAX_LINE + 1)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            after = f" after line {self._number:,}" if self._number else ""
            raise StartError(f"cannot read {self._name}{after}: {reason}") from None


def chunks(lines: Iterable[InputLine]) -> Iterator[list[InputLine]]:
    """The lines in order, one list for each request."""
    chunk: list[InputLine] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line.content or b"")
        if len(chunk) == CHUNK_LINES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
