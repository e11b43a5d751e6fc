"""Framing: which bytes are a request, and which are refused, however the bytes are cut."""

import itertools
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runtime.framing import (
    MAX_CHUNK_LINE,
    MAX_EXTENSIONS,
    MAX_FIELDS,
    MAX_HEAD,
    ChunkedBody,
    FramingError,
    SizedBody,
    check_stray,
    read_head,
)

HOST = "Host: service"


def head(*fields: str, line: str = "GET / HTTP/1.1") -> bytes:
    """A request's head without its last empty line."""
    return "\r\n".join([line, *fields]).encode("latin-1")


def test_a_head_is_read() -> None:
    """Names come in lower case, values without surrounding blanks, and the target as it was sent."""
    read, _ = read_head(head("HOST:service:80 ", "x-A:\t b  c\t", "Empty:", line="PUT /%41?b=%20&c HTTP/1.1"))
    assert (read.method, read.target, read.version, read.length) == ("PUT", b"/%41?b=%20&c", "1.1", 0)
    assert read.headers == [(b"host", b"service:80"), (b"x-a", b"b  c"), (b"empty", b"")]
    assert (read.keep_alive, read.expects_continue) == (True, False)


def test_fields_that_are_repeated_are_not_read_again() -> None:
    """The same header section reuses the parsed fields; another section is parsed anew."""
    first, fields = read_head(head(HOST, "Content-Length: 5"))
    again, same = read_head(head(HOST, "Content-Length: 5", line="POST /x HTTP/1.1"), fields)
    other, _ = read_head(head(HOST, "Content-Length: 6"), fields)
    assert same is fields
    assert (first.length, again.length, again.target, other.length) == (5, 5, b"/x", 6)


@pytest.mark.parametrize(
    ("line", "version", "fields", "keep_alive"),
    [
        ("GET / HTTP/1.1", "1.1", [HOST], True),
        ("GET / HTTP/1.7", "1.1", [HOST], True),
        ("GET / HTTP/1.0", "1.0", [HOST], False),
        ("GET / HTTP/1.0", "1.0", ["Connection: keep-alive"], False),
        ("GET / HTTP/1.1", "1.1", [HOST, "Connection: x, Close"], False),
        ("GET / HTTP/1.1", "1.1", [HOST, "Connection: keep-alive", "Connection: close"], False),
        ("GET / HTTP/1.1", "1.1", [HOST, "Connection: Upgrade", "Upgrade: websocket"], True),
    ],
)
def test_versions_and_connections(line: str, version: str, fields: list[str], *, keep_alive: bool) -> None:
    """An unknown HTTP/1.x counts as 1.1; HTTP/1.0 and `close` in any Connection field end the connection."""
    read, _ = read_head(head(*fields, line=line))
    assert (read.version, read.keep_alive) == (version, keep_alive)


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        ("http://other:8080/a?b", b"/a?b"),
        ("HTTPS://other:8080", b"/"),
        ("http://other:8080?b", b"/?b"),
        ("http://other:8080/", b"/"),
    ],
)
def test_an_absolute_target_replaces_the_host(target: str, origin: bytes) -> None:
    """The host in an absolute URL counts, and the Host field does not (RFC 9112, section 3.2.2)."""
    read, _ = read_head(head(HOST, "A: b", line=f"GET {target} HTTP/1.1"))
    assert (read.target, read.headers) == (origin, [(b"host", b"other:8080"), (b"a", b"b")])


def test_an_asterisk_is_for_options() -> None:
    """`OPTIONS *` is accepted with the target `*`."""
    read, _ = read_head(head(HOST, line="OPTIONS * HTTP/1.1"))
    assert read.target == b"*"


REFUSED: dict[str, tuple[int, bytes]] = {
    "no version": (400, head(HOST, line="GET /")),
    "no target": (400, head(HOST, line="GET HTTP/1.1")),
    "two blanks": (400, head(HOST, line="GET  / HTTP/1.1")),
    "a blank before": (400, head(HOST, line=" GET / HTTP/1.1")),
    "a blank after": (400, head(HOST, line="GET / HTTP/1.1 ")),
    "a tab between": (400, head(HOST, line="GET\t/ HTTP/1.1")),
    "another protocol": (400, head(HOST, line="GET / ICAP/1.1")),
    "a long version": (505, head(HOST, line="GET / HTTP/1.10")),
    "a method that is no token": (400, head(HOST, line="G(T / HTTP/1.1")),
    "an unknown method": (501, head(HOST, line="BREW / HTTP/1.1")),
    "a method in lower case": (501, head(HOST, line="get / HTTP/1.1")),
    "a tunnel": (501, head(HOST, line="CONNECT service:80 HTTP/1.1")),
    "HTTP/2": (505, head(line="PRI * HTTP/2.0")),
    "HTTP/0.9": (505, head(HOST, line="GET / HTTP/0.9")),
    "UTF-8 in the URL": (400, head(HOST, line="GET /ä HTTP/1.1")),
    "a fragment": (400, head(HOST, line="GET /a#b HTTP/1.1")),
    "a relative URL": (400, head(HOST, line="GET a/b HTTP/1.1")),
    "another scheme": (400, head(HOST, line="GET ftp://service/ HTTP/1.1")),
    "a user in the URL": (400, head(HOST, line="GET http://me@service/ HTTP/1.1")),
    "an asterisk": (400, head(HOST, line="GET * HTTP/1.1")),
    "no host": (400, head()),
    "two hosts": (400, head(HOST, HOST)),
    "two hosts of an old client": (400, head(HOST, HOST, line="GET / HTTP/1.0")),
    "a host with a path": (400, head("Host: service/x")),
    "a host list": (400, head("Host: a, b")),
    "a field without a colon": (400, head(HOST, "x")),
    "a field without a name": (400, head(HOST, ": x")),
    "a blank before the colon": (400, head(HOST, "Content-Length : 5")),
    "a folded field": (400, head(HOST, "a: b", " c")),
    "a first field that is folded": (400, head(" a: b", HOST)),
    "NUL": (400, head(HOST, "a: \0")),
    "a bare line feed": (400, head(HOST, "a: b\nContent-Length: 5")),
    "a bare carriage return": (400, head(HOST, "a: b\rContent-Length: 5")),
    "an escape character": (400, head(HOST, "a: \x1b")),
    "a name that is not ASCII": (400, head(HOST, "ä: b")),
    "a negative length": (400, head(HOST, "Content-Length: -1")),
    "a signed length": (400, head(HOST, "Content-Length: +1")),
    "a length in hex": (400, head(HOST, "Content-Length: 0x5")),
    "a length with an underline": (400, head(HOST, "Content-Length: 1_0")),
    "an empty length": (400, head(HOST, "Content-Length:")),
    "a list of lengths": (400, head(HOST, "Content-Length: 5, 5")),
    "two lengths": (400, head(HOST, "Content-Length: 5", "Content-Length: 5")),
    "a length of superscripts": (400, head(HOST, "Content-Length: \xb2")),
    "a length beyond all": (413, head(HOST, f"Content-Length: {10**18}")),
    "a length and chunks": (400, head(HOST, "Content-Length: 5", "Transfer-Encoding: chunked")),
    "chunks of an old client": (400, head(HOST, "Transfer-Encoding: chunked", line="GET / HTTP/1.0")),
    "gzip": (501, head(HOST, "Transfer-Encoding: gzip")),
    "gzip, chunked": (501, head(HOST, "Transfer-Encoding: gzip, chunked")),
    "chunked twice": (501, head(HOST, "Transfer-Encoding: chunked, chunked")),
    "chunked in two fields": (501, head(HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
    "identity": (501, head(HOST, "Transfer-Encoding: identity")),
    "an empty coding": (501, head(HOST, "Transfer-Encoding: ")),
    "chunked with a parameter": (501, head(HOST, "Transfer-Encoding: chunked;x=1")),
    "too many fields": (431, head(HOST, *["a: b"] * MAX_FIELDS)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_for_sure_is_refused(case: str) -> None:
    """Each ambiguous head is refused with its status, however a more lenient parser would read it."""
    status, raw = REFUSED[case]
    with pytest.raises(FramingError) as caught:
        read_head(raw)
    assert (caught.value.status, str(caught.value) != "") == (status, True)


def test_a_refusal_has_the_fields() -> None:
    """A refusal keeps the request's fields if they could be parsed, so its correlation id can be returned."""
    with pytest.raises(FramingError) as caught:
        read_head(head("X-Correlation-ID: 7", line="GET / HTTP/1.1"))
    assert caught.value.headers == [(b"x-correlation-id", b"7")]


@pytest.mark.parametrize(
    ("part", "stray"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", False),
        (b"GET / HTTP/1.1\r", False),
        (b"\x16\x03\x01\x02\x00\x01", True),
        (b"GET / HTTP/1.1\n", True),
        (b"GET / HTTP/1.1\rHost", True),
        (b"GET /\x7f", True),
    ],
)
def test_what_no_head_has_is_seen_at_once(part: bytes, *, stray: bool) -> None:
    """Bytes that no head contains, as of TLS or lone line ends, are refused at once, without a timeout."""
    with pytest.raises(FramingError, match="cannot be read") if stray else nullcontext():
        check_stray(bytearray(part), 0)


# --- Bodies --------------------------------------------------------------------------------------------------------


def take(body: SizedBody | ChunkedBody, pieces: list[bytes]) -> tuple[bytes, bytes, bool]:
    """The content, the bytes behind the body, and whether the body has ended."""
    buffer, content = bytearray(), b""
    for piece in pieces:
        buffer += piece
        if not body.ended:
            content += body.take(buffer)
    return content, bytes(buffer), body.ended


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Bytes cut into pieces."""
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


def test_a_body_of_known_length_ends_there() -> None:
    """The bytes after a body of known length are left for the next request."""
    assert take(SizedBody(5), [b"ab", b"cdeGET"]) == (b"abcde", b"GET", True)


EXTENSIONS = st.sampled_from([b"", b";a", b' ; a="b;c" ;d', b";\xe9"])
TRAILERS = st.lists(st.sampled_from([b"a: b\r\n", b"Content-Length: 5\r\n"]), max_size=3)


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), EXTENSIONS), max_size=6),
    TRAILERS,
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_chunks_are_read_however_they_are_cut(
    chunks: list[tuple[bytes, bytes]], trailers: list[bytes], places: list[int]
) -> None:
    """The body is the chunks' content; extensions and trailers are dropped; bytes after it are left alone."""
    raw = b"".join(b"%X%b\r\n%b\r\n" % (len(content), extension, content) for content, extension in chunks)
    raw += b"000\r\n" + b"".join(trailers) + b"\r\n"
    content = b"".join(content for content, _ in chunks)
    assert take(ChunkedBody(), [*cut(raw, places), b"GET"]) == (content, b"GET", True)
    assert not take(ChunkedBody(), [raw[:-1]])[2]


BAD_CHUNKS: dict[str, tuple[int, bytes]] = {
    "no size": (400, b"\r\n"),
    "a size that is no number": (400, b"x\r\n"),
    "a signed size": (400, b"+5\r\n"),
    "a size in C": (400, b"0x5\r\n"),
    "a size with a blank": (400, b"5 \r\n"),
    "a size with a blank before": (400, b" 5\r\n"),
    "a size beyond all": (400, b"F" * 16 + b"\r\n"),
    "a bare line feed": (400, b"5\nhello\r\n"),
    "a bare line feed alone": (400, b"\n"),
    "a bare line feed after an extension": (400, b"5;a\nhello\r\n"),
    "a carriage return in an extension": (400, b"5;a\rb\r\nhello\r\n"),
    "a chunk that is longer": (400, b"5\r\nhello!\r\n"),
    "a chunk that ends with a bare line feed": (400, b"5\r\nhello\n"),
    "a long extension": (400, b"5;" + b"a" * MAX_CHUNK_LINE),
    "a trailer that is no field": (400, b"0\r\nx\r\n"),
    "a trailer with a bare line feed": (400, b"0\r\na: b\n"),
    "a trailer with NUL": (400, b"0\r\na: \0\r\n"),
    "a folded trailer": (400, b"0\r\na: b\r\n c\r\n"),
    "a trailer without end": (431, b"0\r\na: " + b"b" * MAX_HEAD),
    "too many trailers": (431, b"0\r\n" + b"a: b\r\n" * (MAX_FIELDS + 2)),
    "trailers that are too long together": (431, b"0\r\n" + (b"a: " + b"b" * 1000 + b"\r\n") * 17),
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "byte by byte"])
def test_bad_chunks_are_refused(case: str, *, whole: bool) -> None:
    """A malformed chunk is refused, and none of its bytes is read as something else."""
    status, raw = BAD_CHUNKS[case]
    with pytest.raises(FramingError) as caught:
        take(ChunkedBody(), [raw] if whole else [bytes([byte]) for byte in raw])
    assert caught.value.status == status


def test_extensions_are_bounded_together() -> None:
    """The chunk extensions of one body are bounded in total."""
    raw = (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * (MAX_EXTENSIONS // 1000 + 1)
    with pytest.raises(FramingError):
        take(ChunkedBody(), [raw])
