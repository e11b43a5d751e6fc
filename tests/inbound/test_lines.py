"""Streams read line by line."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inbound.lines import split_lines

LIMIT = 16  # bytes in a line


class BrokenOffError(Exception):
    """The sender has disconnected."""


bodies = st.lists(
    st.one_of(
        st.binary(max_size=3 * LIMIT).map(lambda line: line.replace(b"\n", b"")),
        st.integers(LIMIT - 2, LIMIT + 2).map(lambda size: b"x" * size),
    ),
    max_size=8,
).flatmap(lambda parts: st.sampled_from([b"\n".join(parts), b"\n".join([*parts, b""])]))


@st.composite
def in_chunks(draw: st.DrawFn) -> list[bytes]:
    """A body cut at arbitrary places into chunks, some of them empty."""
    body = draw(bodies)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


async def pieces_of(chunks: list[bytes], *, ends: bool = True) -> AsyncIterator[bytes]:
    """A body that arrives in these chunks, and then ends or breaks off."""
    for chunk in chunks:
        yield chunk
    if not ends:
        raise BrokenOffError


async def read(pieces: AsyncIterator[bytes]) -> tuple[list[bytes | None], bool]:
    """The lines, and whether the body was complete."""
    read: list[bytes | None] = []
    try:
        async for some in split_lines(pieces, LIMIT):
            assert some
            read += some
    except BrokenOffError:
        return read, False
    return read, True


def expected(body: bytes, *, ends: bool = True) -> list[bytes | None]:
    """The lines of a body in memory; a body that breaks off loses an unterminated last line."""
    *whole, rest = body.split(b"\n")
    if ends and rest:
        whole.append(rest)
    return [line if len(line) <= LIMIT else None for line in whole]


@given(in_chunks())
def test_lines_do_not_depend_on_how_the_body_is_cut(chunks: list[bytes]) -> None:
    """However a body is cut its lines are the same, and a line over the limit is None."""
    assert asyncio.run(read(pieces_of(chunks))) == (expected(b"".join(chunks)), True)


@given(in_chunks())
def test_a_body_that_breaks_off_loses_its_half_line(chunks: list[bytes]) -> None:
    """A body that breaks off gives its complete lines, and then the error."""
    assert asyncio.run(read(pieces_of(chunks, ends=False))) == (expected(b"".join(chunks), ends=False), False)


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 1000 * LIMIT])
async def test_a_line_over_the_limit_does_not_spoil_the_next(size: int) -> None:
    """After a line of any length, the next one is read correctly."""
    read_, _ = await read(pieces_of([b"x" * size, b"\nnext", b"\n"]))
    assert read_ == [b"x" * size if size <= LIMIT else None, b"next"]


async def test_a_line_is_there_before_the_body_ends() -> None:
    """A line is read as soon as its end has arrived."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first\nsec"
        raise AssertionError("more was read than was needed")

    body = split_lines(pieces(), LIMIT)
    assert await anext(body) == [b"first"]


async def test_lines_come_as_many_at_a_time_as_arrive() -> None:
    """The lines that one network read completes come together, without waiting for the next read."""
    chunks = [b"a\nb\nc", b"", b"d\n", b"e", b"f\ng\n"]
    assert [some async for some in split_lines(pieces_of(chunks), LIMIT)] == [[b"a", b"b"], [b"cd"], [b"ef", b"g"]]
