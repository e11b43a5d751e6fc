"""The fuzzer's reference reader, tested against the examples and rules of RFC 9112."""

import pytest

from tests.fuzz.reference import requests_of

H = b"Host: a\r\n"
G = b"GET / HTTP/1.1\r\n"
CHUNKS = b'3\r\nabc\r\nA;x="y"\r\n0123456789\r\n00\r\nT: 1\r\n\r\n'
NEXT = G + H + b"\r\n"


def bodies(data: bytes, *, lenient: bool) -> list[bytes]:
    """The bodies of the requests."""
    return [request.body for request in requests_of(data, lenient=lenient)]


SURE: dict[str, tuple[bytes, list[bytes]]] = {
    "a request": (NEXT, [b""]),
    "two": (NEXT + NEXT, [b"", b""]),
    "half of one": (NEXT + G + H, [b""]),
    "a length": (G + H + b"Content-Length: 3\r\n\r\nabc" + NEXT, [b"abc", b""]),
    "a length with zeros": (G + H + b"Content-Length: 003\r\n\r\nabc" + NEXT, [b"abc", b""]),
    "a length that is not reached": (G + H + b"Content-Length: 4\r\n\r\nabc", []),
    "chunks": (G + H + b"Transfer-Encoding: Chunked\r\n\r\n" + CHUNKS + NEXT, [b"abc0123456789", b""]),
    "an upgrade": (
        G + H + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc" + NEXT,
        [b"abc", b""],
    ),
    "a close": (G + H + b"Connection: x, Close\r\n\r\n" + NEXT, [b""]),
    "an unknown minor version": (b"GET / HTTP/1.9\r\n" + H + b"\r\n" + NEXT, [b"", b""]),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n" + NEXT, [b""]),
    "no Host": (G + b"\r\n" + NEXT, []),
    "two Hosts": (G + H + H + b"\r\n" + NEXT, []),
    "a blank before a colon": (G + b"Host : a\r\n\r\n" + NEXT, []),
    "no colon": (G + H + b"x\r\n\r\n" + NEXT, []),
    "two lengths": (G + H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc" + NEXT, []),
    "a length with a sign": (G + H + b"Content-Length: +3\r\n\r\nabc" + NEXT, []),
    "an empty length": (G + H + b"Content-Length:\r\n\r\n" + NEXT, []),
    "chunked twice": (G + H + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + NEXT, []),
    "another coding": (G + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + NEXT, []),
    "a coding that is not the last": (G + H + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + NEXT, []),
    "a chunk that is too long": (G + H + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n" + NEXT, []),
    "a chunk without CR": (G + H + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n" + NEXT, []),
    "a chunk of 0x3": (G + H + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + NEXT, []),
    "HTTP/2": (b"GET / HTTP/2.0\r\n" + H + b"\r\n" + NEXT, []),
}

LEFT_OPEN: dict[str, tuple[bytes, list[bytes], list[bytes]]] = {
    "an empty line before": (b"\r\n" + NEXT, [], [b""]),
    "line feeds alone": (NEXT.replace(b"\r\n", b"\n"), [], [b""]),
    "a folded line": (G + H + b"Content-Length:\r\n 3\r\n\r\nabc" + NEXT, [], [b"abc", b""]),
    "the same length twice": (G + H + b"Content-Length: 3, 3\r\n\r\nabc" + NEXT, [], [b"abc", b""]),
    "a length and chunks": (
        G + H + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
        [],
        [b""],
    ),
    "chunks in HTTP/1.0": (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT, [], [b""]),
    "a NUL in a value": (G + H + b"x: \0\r\n\r\n", [], [b""]),
    "blanks in the request line": (b"GET  / HTTP/1.1\r\n" + H + b"\r\n", [], [b""]),
    "a blank before the first field": (G + b" x: y\r\n" + H + b"\r\n", [], [b""]),
    "an empty coding": (G + H + b"Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n", [], [b""]),
    "HTTP/1.0 kept alive": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + NEXT, [b""], [b"", b""]),
}


@pytest.mark.parametrize("case", SURE)
def test_where_rfc_9112_is_plain(case: str) -> None:
    """Where RFC 9112 leaves no choice, both readings are the same."""
    data, expected = SURE[case]
    assert bodies(data, lenient=False) == expected
    assert bodies(data, lenient=True) == expected


@pytest.mark.parametrize("case", LEFT_OPEN)
def test_where_rfc_9112_leaves_a_choice(case: str) -> None:
    """Where RFC 9112 leaves a choice, a strict recipient refuses, and a lenient one reads in the one given way."""
    data, strict, lenient = LEFT_OPEN[case]
    assert bodies(data, lenient=False) == strict
    assert bodies(data, lenient=True) == lenient
