"""Where each request of a connection begins and ends (RFC 9112): strict, bounded, and without I/O.

What a client sends is read in one way only, here. What this module does not understand it refuses, and the connection
ends there: no byte of a body is ever read as a request, and no byte of a request as a body.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import PqsError

MAX_HEAD = 16 * 1024  # bytes of a request line with its header section, and of a trailer section
MAX_FIELDS = 100  # in a header section, and in a trailer section
MAX_EXTENSIONS = 16 * 1024  # bytes of all chunk extensions of one body
MAX_CHUNK_LINE = 1024  # bytes of one chunk's size and extensions
MAX_DIGITS = 18  # of a Content-Length: larger bodies do not exist

# Others are 501. CONNECT is one of them: there is no tunnel here.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_OTHER_VERSION = re.compile(rb"%s [^\x00-\x20\x7f-\xff]+ HTTP/[0-9.]+" % _TOKEN)
_LINE = re.compile(rb"(%s) ([^\x00-\x20\x7f-\xff]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_OTHER_BYTES = re.compile(rb"%s [^ ]*[\x80-\xff][^ ]* HTTP/[0-9]\.[0-9]" % _TOKEN)
_FIELD = re.compile(rb"(%s):[ \t]*([^\r\n]*)" % _TOKEN)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]+)(/[^?]*)?(\?.*)?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_CONTROLS = bytes({*range(32), 127} - {*b"\t\r\n"})
_STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]|(?<!\r)\n")  # what no head has anywhere

Headers = list[tuple[bytes, bytes]]


class FieldList(list[tuple[bytes, bytes]]):
    """Header fields, with room for a note of whoever reads them: a client's next request often has the same list.

    When it has another one, that has the note of the list `before`.
    """

    __slots__ = ("before", "note")

    before: object
    note: object


class FramingError(PqsError):
    """A request that is not carried out. Its connection ends, for nobody knows where the next request begins."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.headers: Headers = []  # of the request, where they could be read


@dataclass(frozen=True, slots=True)
class Fields:
    """A header section, and what it says about the connection and the body."""

    section: bytes  # as it was sent
    headers: Headers  # the names in lower case, the values without the blanks around them
    hosts: int
    length: int | None
    chunked: bool
    closes: bool
    expects_continue: bool


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes three times as long
class Head:
    """A request up to the end of its header section."""

    method: str
    target: bytes  # in origin form: the path and, after `?`, the query; or `*`
    version: str  # 1.0 or 1.1
    headers: Headers
    length: int | None  # bytes of the body; None: it comes in chunks
    keep_alive: bool
    expects_continue: bool


def check_stray(buffer: bytearray, start: int) -> None:
    """Raises FramingError for bytes of an unfinished head, from `start` on, that no head has, before its end."""
    if _STRAY.search(buffer, start) is not None:
        raise FramingError(400, "the request cannot be read")


def too_large(buffer: bytearray) -> FramingError:
    """The refusal of a head that is longer than MAX_HEAD."""
    end = buffer.find(b"\r\n", 0, MAX_HEAD)
    if end < 0:
        return FramingError(414, f"the request line is longer than {MAX_HEAD:,} bytes")
    error = FramingError(431, f"the header section is longer than {MAX_HEAD:,} bytes")
    error.headers = _legible(bytes(buffer[end + 2 : MAX_HEAD]))
    return error


def read_head(head: bytes, known: Fields | None = None) -> tuple[Head, Fields]:
    """The request whose head this is, without the empty line at its end.

    `known` are the fields of the request before: clients repeat them, and what is the same is not read again.
    Raises FramingError.
    """
    line, _, section = head.partition(b"\r\n")
    try:
        parts = _read_line(line)
        fields = known if known is not None and known.section == section else _read_fields(section, known)
        return _head_of(parts, fields), fields
    except FramingError as error:
        error.headers = _legible(section)
        raise


def _read_line(line: bytes) -> re.Match[bytes]:
    parts = _LINE.fullmatch(line)
    if parts is None:
        if _OTHER_VERSION.fullmatch(line):
            raise FramingError(505, "the HTTP version is not 1.0 or 1.1")
        if _OTHER_BYTES.fullmatch(line):
            raise FramingError(400, "the URL holds bytes that are not ASCII; they are to be percent-encoded")
        raise FramingError(400, "the request line cannot be read")
    if parts[3] != b"1":
        raise FramingError(505, "the HTTP version is not 1.0 or 1.1")
    return parts


def _head_of(parts: re.Match[bytes], fields: Fields) -> Head:
    method = parts[1].decode("ascii")
    if method not in METHODS:
        raise FramingError(501, f"the method {method} is not known here")
    old = parts[4] == b"0"
    if fields.hosts != 1 and not (old and fields.hosts == 0):
        raise FramingError(400, "a request has exactly one Host")
    if fields.chunked and (old or fields.length is not None):
        raise FramingError(400, "Transfer-Encoding has no place beside Content-Length or in HTTP/1.0")
    target, headers = parts[2], fields.headers
    if target[0] != 47:  # a slash: origin form, the usual one
        target, headers = _origin_form(method, target, headers)
    if b"#" in target:
        raise FramingError(400, "the URL has a fragment; that is not sent")
    length = None if fields.chunked else fields.length or 0
    keep_alive = not (old or fields.closes)
    expects_continue = fields.expects_continue and not old and length != 0
    return Head(method, target, "1.0" if old else "1.1", headers, length, keep_alive, expects_continue)


def _origin_form(method: str, target: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """A target in another form, as the usual one; its host stands in place of Host (RFC 9112, section 3.2.2)."""
    if target == b"*" and method == "OPTIONS":
        return target, headers
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise FramingError(400, "the URL cannot be read")
    others = [header for header in headers if header[0] != b"host"]
    return (absolute[2] or b"/") + (absolute[3] or b""), [(b"host", absolute[1]), *others]


def _read_fields(section: bytes, before: Fields | None) -> Fields:
    lines = section.split(b"\r\n") if section else []
    if len(lines) > MAX_FIELDS:
        raise FramingError(431, f"the header section has more than {MAX_FIELDS} fields")
    if len(section.translate(None, _CONTROLS)) != len(section):
        raise FramingError(400, "a header field holds a control character")
    headers = FieldList([_read_field(line) for line in lines])
    headers.note = None
    headers.before = getattr(before.headers, "note", None) if before is not None else None
    hosts = 0
    length: int | None = None
    chunked = closes = expects_continue = False
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise FramingError(400, "Host cannot be read")
        elif name == b"content-length":
            if length is not None or not value.isdigit():
                raise FramingError(400, "Content-Length is to be one number")
            if len(value) > MAX_DIGITS:
                raise FramingError(413, "the body is larger than any that is taken")
            length = int(value)
        elif name == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise FramingError(501, "Transfer-Encoding may only be chunked, and once")
            chunked = True
        elif name == b"connection":
            closes = closes or b"close" in (option.strip() for option in value.lower().split(b","))
        elif name == b"expect":
            expects_continue = value.lower() == b"100-continue"
    return Fields(section, headers, hosts, length, chunked, closes, expects_continue)


def _legible(section: bytes) -> Headers:
    """The fields of a refused request that can be read, for its answer: its correlation id among them."""
    lines = section.split(b"\r\n", MAX_FIELDS)[:MAX_FIELDS]
    found = [_FIELD.fullmatch(line) for line in lines if len(line.translate(None, _CONTROLS)) == len(line)]
    return [(parts[1].lower(), parts[2].rstrip(b" \t")) for parts in found if parts is not None]


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    parts = _FIELD.fullmatch(line)
    if parts is None:
        raise FramingError(400, "a header field cannot be read")
    return parts[1].lower(), parts[2].rstrip(b" \t")


class SizedBody:
    """A body whose length is known."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0

    def take(self, buffer: bytearray) -> bytes:
        """The part of it at the beginning of `buffer`, which is removed there."""
        piece = bytes(buffer[: self._left])
        del buffer[: self._left]
        self._left -= len(piece)
        self.ended = not self._left
        return piece


NO_BODY = SizedBody(0)  # nothing is taken from it, so all requests without a body have the same


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1). Extensions and trailers are read, bounded, and dropped."""

    def __init__(self) -> None:
        self.ended = False
        self._left = 0  # bytes of the chunk
        self._step: Callable[[bytearray, int, list[bytearray]], int] = self._size
        self._extensions = 0
        self._trailers = 0
        self._fields = 0

    def take(self, buffer: bytearray) -> bytes:
        """The content at the beginning of `buffer`; what held it is removed there. Raises FramingError."""
        pieces: list[bytearray] = []
        start = 0
        while not self.ended:
            end = self._step(buffer, start, pieces)
            if end == start:  # more is needed
                break
            start = end
        del buffer[:start]
        return b"".join(pieces)

    def _size(self, buffer: bytearray, start: int, _pieces: list[bytearray]) -> int:
        end = buffer.find(b"\n", start, start + MAX_CHUNK_LINE)
        if end < 0:
            if len(buffer) - start >= MAX_CHUNK_LINE:
                raise FramingError(400, "a chunk's size line is too long")
            return start
        line = _CHUNK.fullmatch(buffer, start, end - 1)
        if line is None or buffer[end - 1] != 13:
            raise FramingError(400, "a chunk's size cannot be read")
        self._extensions += len(line[2] or b"")
        if self._extensions > MAX_EXTENSIONS:
            raise FramingError(400, "the chunk extensions are too long")
        self._left = int(line[1], 16)
        self._step = self._content if self._left else self._trailer
        return end + 1

    def _content(self, buffer: bytearray, start: int, pieces: list[bytearray]) -> int:
        piece = buffer[start : start + self._left]
        pieces.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._step = self._end_of_chunk
        return start + len(piece)

    def _end_of_chunk(self, buffer: bytearray, start: int, _pieces: list[bytearray]) -> int:
        end = bytes(buffer[start : start + 2])
        if not b"\r\n".startswith(end):
            raise FramingError(400, "a chunk is longer than its size")
        if len(end) < 2:
            return start
        self._step = self._size
        return start + 2

    def _trailer(self, buffer: bytearray, start: int, _pieces: list[bytearray]) -> int:
        end = buffer.find(b"\n", start)
        self._trailers_fit((end if end >= 0 else len(buffer)) - start)
        if end < 0:
            return start
        line = bytes(buffer[start : end + 1])
        if line == b"\r\n":
            self.ended = True
            return end + 1
        if not line.endswith(b"\r\n") or len(line.translate(None, _CONTROLS)) != len(line):
            raise FramingError(400, "a trailer field cannot be read")
        _read_field(line[:-2])
        self._trailers += len(line)
        self._fields += 1
        return end + 1

    def _trailers_fit(self, more: int) -> None:
        if self._trailers + more > MAX_HEAD or self._fields > MAX_FIELDS:
            raise FramingError(431, f"the trailer section is longer than {MAX_HEAD:,} bytes or {MAX_FIELDS} fields")
