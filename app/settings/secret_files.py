"""Secrets that are kept in files: read at the start, and again when the file has changed."""

import logging
from collections.abc import Callable
from pathlib import Path

from app.errors import StartError

log = logging.getLogger(__name__)

LARGEST = 64 * 1024  # bytes of a secret


def read_secret(path: Path) -> str:
    """The content, less a line end after it. Raises StartError, without a word of the content."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise StartError(f"the file {path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise StartError(f"the file {path} is larger than {LARGEST:,} bytes: that is not a secret")
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise StartError(f"the file {path} is not text in UTF-8") from None
    if not text.strip():
        raise StartError(f"the file {path} is empty: a secret was expected in it")
    return text


class Secret:
    """A secret that may change while the service runs. Its repr does not show it.

    It is `value`, or the content of `path`. A file that can no longer be read, or that `check` refuses by a
    ValueError, leaves the last content in force, with one warning. Raises StartError when the file cannot be read
    the first time.
    """

    __slots__ = ("_check", "_path", "_seen", "_value", "_warned")

    def __init__(
        self, value: str | None, path: Path | None = None, check: Callable[[str], object] = lambda _: None
    ) -> None:
        self._check = check
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._warned = False
        self._value = value
        if path is not None:
            self._value = read_secret(path)
            self._seen = _identity(path)

    def __repr__(self) -> str:
        """Where it comes from."""
        return f"Secret({'in ' + str(self._path) if self._path else 'set'})"

    def __call__(self) -> str | None:
        """The secret as it is now; None where there is none. Costs one `stat` where it is in a file."""
        if self._path is None:
            return self._value
        seen = _identity(self._path)
        if seen == self._seen:
            return self._value
        try:
            value = read_secret(self._path)
            self._check(value)
        except StartError as error:
            self._warn(str(error))
        except ValueError:  # its message may hold the secret
            self._warn(f"the file {self._path} does not hold what its setting expects")
        else:
            self._value = value
            self._seen = seen
            self._warned = False
        return self._value

    def _warn(self, said: str) -> None:
        if not self._warned:
            log.warning("%s; its last content stays in force", said)
            self._warned = True


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
