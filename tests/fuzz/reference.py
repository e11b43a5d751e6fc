"""A reader of HTTP/1.1 requests written from RFC 9112, for comparison only: slow and plain.

RFC 9112 leaves some choices to the recipient: it may refuse a message, or read it in one given way. So the bytes of a
connection have two readings: a strict recipient refuses whatever it may refuse, a lenient one accepts whatever it may
accept. A correct server carries out at least the requests of the strict reading and at most those of the lenient one,
in their order; the strict reading is always the beginning of the lenient one.
"""

import re
from dataclasses import dataclass, field

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TEXT = rb"[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]"  # in quotes
TOKEN = re.compile(_TOKEN)
TARGET = re.compile(rb"[\x21-\x7e]+")
VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,15})"
    rb"(?:[ \t]*;[ \t]*"
    + _TOKEN
    + rb"(?:[ \t]*=[ \t]*(?:"
    + _TOKEN
    + rb'|"(?:'
    + _TEXT
    + rb'|\\[\t \x21-\x7e\x80-\xff])*"))?)*'
)
HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
BLANKS = b" \t"


class RefusedError(Exception):
    """The recipient refuses the bytes as a request: it answers with an error and closes the connection."""


class UnfinishedError(Exception):
    """The bytes end inside the request."""


@dataclass
class Request:
    """A request as it was sent. The names of its fields are in lower case."""

    method: bytes
    target: bytes
    version: tuple[int, int]
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        """The items of all fields of a name, as a list (RFC 9110, section 5.6.1)."""
        joined = b",".join(value for key, value in self.fields if key == name)
        return [item.strip(BLANKS) for item in joined.split(b",")] if joined.strip(BLANKS) else []

    def has(self, name: bytes) -> bool:
        """Whether the request has a field of that name."""
        return any(key == name for key, _ in self.fields)


def requests_of(data: bytes, *, lenient: bool) -> list[Request]:
    """The complete requests of a connection, up to the one after which it is closed."""
    reader = _Reader(data, lenient=lenient)
    found: list[Request] = []
    try:
        while not reader.closed:
            found.append(reader.request())
    except (RefusedError, UnfinishedError):
        pass
    return found


class _Reader:
    """The bytes of one connection."""

    def __init__(self, data: bytes, *, lenient: bool) -> None:
        self._data = data
        self._place = 0
        self._lenient = lenient
        self.closed = False  # after the request that was read last

    def request(self) -> Request:
        """The next request. Raises RefusedError and UnfinishedError."""
        line = self._line()
        while line == b"":  # section 2.2: a server SHOULD ignore an empty line before the request line
            self._may()
            line = self._line()
        request = self._request_line(line)
        request.fields = self._fields(first=True)
        hosts = [value for name, value in request.fields if name == b"host"]
        if len(hosts) > 1 or (not hosts and request.version >= (1, 1)) or not all(map(HOST.fullmatch, hosts)):
            raise RefusedError("section 3.2: one valid Host")
        request.body = self._body(request)
        options = {option.lower() for option in request.values(b"connection")}
        if b"close" in options:
            self.closed = True
        elif request.version < (1, 1) or request.method == b"CONNECT":
            # Section 9.3: one that understands HTTP/1.0's keep-alive may go on; nobody has to.
            self.closed = not self._lenient or (request.version < (1, 1) and b"keep-alive" not in options)
        return request

    def _may(self) -> None:
        """A choice of the recipient: a strict one refuses, a lenient one reads on as written here."""
        if not self._lenient:
            raise RefusedError("a strict recipient refuses this")

    def _line(self, *, in_chunks: bool = False) -> bytes:
        """A line without its CRLF; a start line or field may end in a single LF (section 2.2)."""
        end = self._data.find(b"\n", self._place)
        if end < 0:
            raise UnfinishedError
        line = self._data[self._place : end]
        self._place = end + 1
        if line.endswith(b"\r"):
            line = line[:-1]
        elif in_chunks:
            raise RefusedError("section 7.1: a chunk's lines end in CRLF")
        else:
            self._may()
        if b"\r" in line:  # section 2.2: invalid, or replaced by a blank
            if in_chunks:
                raise RefusedError("section 7.1: a CR in the line of a chunk")
            self._may()
            line = line.replace(b"\r", b" ")
        return line

    def _request_line(self, line: bytes) -> Request:
        parts = line.split(b" ")
        if len(parts) != 3 or not all(parts):  # section 3: it may be read by words
            self._may()
            parts = re.split(rb"[ \t\x0b\x0c]+", line.strip(b" \t\x0b\x0c"))
        if len(parts) != 3:
            raise RefusedError("section 3: method, target, version")
        method, target, named = parts
        version = VERSION.fullmatch(named)
        if not TOKEN.fullmatch(method) or not TARGET.fullmatch(target) or version is None or version[1] != b"1":
            raise RefusedError("section 3: a token, a URI, and HTTP/1")
        return Request(method, target, (1, int(version[2])))

    def _fields(self, *, first: bool) -> list[tuple[bytes, bytes]]:
        """The field lines up to the empty line."""
        fields: list[tuple[bytes, bytes]] = []
        while line := self._line():
            if line[:1] in {b" ", b"\t"}:
                self._may()
                if not fields:
                    if not first:
                        raise RefusedError("section 5.2: a folded line without one before it")
                    continue  # section 2.2: lines with a blank before the first field are passed over
                name, value = fields[-1]  # section 5.2: obs-fold
                fields[-1] = (name, (value + b" " + line.strip(BLANKS)).strip(BLANKS))
                continue
            name, colon, value = line.partition(b":")
            if not colon or not TOKEN.fullmatch(name):  # section 5.1: no blank before the colon either
                raise RefusedError("section 5: name, colon, value")
            if CONTROLS.search(value):  # RFC 9110, section 5.5
                self._may()
                value = CONTROLS.sub(b" ", value)
            fields.append((name.lower(), value.strip(BLANKS)))
        return fields

    def _body(self, request: Request) -> bytes:
        """The body, whose length follows section 6.3."""
        if request.has(b"transfer-encoding"):
            if request.version < (1, 1) or request.has(b"content-length"):
                # Section 6.1: refused, or read by the coding, and then the connection is closed.
                self._may()
                self.closed = True
            codings = [coding.lower() for coding in request.values(b"transfer-encoding")]
            if b"" in codings:
                self._may()
                codings = [coding for coding in codings if coding]
            if codings != [b"chunked"]:
                raise RefusedError("sections 6.1 and 6.3: chunked is the only coding, once and last")
            return self._chunks()
        if not request.has(b"content-length"):
            return b""
        lengths = request.values(b"content-length")
        if not lengths or not all(re.fullmatch(rb"[0-9]{1,18}", length) for length in lengths):
            raise RefusedError("section 6.3: a length in digits")
        if len(lengths) > 1:
            self._may()
            if len(set(lengths)) > 1:
                raise RefusedError("section 6.3: two lengths")
        return self._take(int(lengths[0]))

    def _chunks(self) -> bytes:
        body = b""
        while True:
            size = CHUNK.fullmatch(self._line(in_chunks=True))
            if size is None:
                raise RefusedError("section 7.1: a size in hexadecimal digits")
            if re.search(rb"[ \t][;=]|[;=][ \t]", size[0]):
                self._may()  # section 7.1.1 wants blanks there read, and removed; nobody sends them, and some refuse
            if int(size[1], 16) == 0:
                self._fields(first=False)  # the trailers
                return body
            body += self._take(int(size[1], 16))
            if self._take(2) != b"\r\n":
                raise RefusedError("section 7.1: a chunk ends in CRLF")

    def _take(self, length: int) -> bytes:
        if len(self._data) < self._place + length:
            raise UnfinishedError
        self._place += length
        return self._data[self._place - length : self._place]
