"""Tokens: encoding and decoding gives the same values, and anything else is refused."""

import string
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadTokenError
from app.feed import tokens
from app.feed.tokens import Token
from app.store.changes import Place
from tests.making import node

URL_SAFE = set(string.ascii_letters + string.digits + "-_")

TOKENS = st.builds(
    Token,
    st.builds(Place, st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1)),
    st.none(),
    st.just(b""),
) | st.builds(
    Token,
    st.builds(Place, st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1)),
    st.none() | st.uuids(),
    st.binary(min_size=4, max_size=4),
)


@given(TOKENS)
def test_a_token_comes_back(token: Token) -> None:
    """Place, entity and filter come back unchanged, even if they are zero."""
    text = tokens.write(token)
    assert tokens.read(text) == token
    assert set(text) <= URL_SAFE


@pytest.mark.parametrize("token", [Token(Place(5, 7)), Token(Place(5, 7), node(1), b"abcd")])
def test_a_damaged_token_is_refused(token: Token) -> None:
    """A token that is cut, lengthened or altered in one character is refused."""
    text = tokens.write(token)
    damaged = [text[:end] for end in range(len(text))] + [text + each for each in "A=- "] + ["é", "now ", "A" * 26]
    for place in range(len(text)):
        damaged += [text[:place] + other + text[place + 1 :] for other in "Aa0-" if other != text[place]]
    for each in damaged:
        with pytest.raises(BadTokenError, match="damaged"):
            tokens.read(each)


def test_a_token_of_another_release_is_refused() -> None:
    """A token with a valid seal and an unknown kind is refused."""
    with pytest.raises(BadTokenError):
        tokens.read(tokens._sealed(b"\x09" + bytes(12)))


def test_the_first_entity_of_all_is_told_from_none() -> None:
    """The entity id zero differs from no entity."""
    nil = Token(Place(1, 1), UUID(int=0), b"abcd")
    assert tokens.read(tokens.write(nil)).key == UUID(int=0)
