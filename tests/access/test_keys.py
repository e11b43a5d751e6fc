"""The form of a key: made, read back, and refused if one character is wrong."""

import os
import re
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.keys import ID_LENGTH, LENGTH, AccessKey, digest_of, id_in, make, parse

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"


def from_bytes(content: bytes) -> AccessKey:
    """The key made from this randomness: 7 bytes for the id, 32 for the secret."""
    parts = iter((content[:7], content[7:]))
    return make(lambda length: next(parts))


KEYS = st.binary(min_size=39, max_size=39).map(from_bytes)


@given(KEYS)
def test_a_key_is_read_back(key: AccessKey) -> None:
    """A key has the documented form; both ways of reading give its id and the digest of its secret."""
    text = key.text.encode()
    assert re.fullmatch(r"pqs_[a-z2-7]{10}_[A-Za-z0-9_-]{43}_[0-9a-f]{8}", key.text)
    assert len(text) == LENGTH
    assert parse(text) == (key.id, key.digest)
    assert digest_of(text) == key.digest == sha256(text[15:58]).digest()
    assert id_in(text) == key.id.encode()


@given(KEYS, st.integers(0, LENGTH - 1), st.sampled_from(CHARACTERS))
def test_one_wrong_character_is_noticed(key: AccessKey, place: int, character: str) -> None:
    """A key with any one character replaced by another one is not accepted as a key."""
    typed = key.text[:place] + character + key.text[place + 1 :]
    assert (parse(typed.encode()) is not None) is (typed == key.text)
    assert (digest_of(typed.encode()) is not None) is (typed == key.text)


@given(KEYS, st.integers(0, LENGTH - 2))
def test_two_exchanged_characters_are_noticed(key: AccessKey, place: int) -> None:
    """A key with two characters exchanged is not accepted as a key."""
    text = key.text
    typed = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    assert (parse(typed.encode()) is not None) is (typed == text)


@given(st.one_of(st.binary(max_size=200), st.binary(min_size=LENGTH, max_size=LENGTH)))
def test_anything_else_is_not_a_key(text: bytes) -> None:
    """Arbitrary bytes are refused without an exception."""
    assert parse(text) is None
    assert digest_of(text) is None


@given(KEYS)
def test_a_key_has_one_form(key: AccessKey) -> None:
    """A key with a prefix, a suffix, upper case or another encoding of the same bits is refused."""
    text = key.text.encode()
    for other in (
        text + b"\n",
        b" " + text,
        text.upper(),
        text.swapcase(),
        text[:-1],
        text + b"0",
        b"PQS" + text[3:],
    ):
        assert parse(other) is None
        assert digest_of(other) is None


def test_keys_differ() -> None:
    """Two keys share neither their id nor their secret."""
    keys = [make(os.urandom) for _ in range(1000)]
    assert len({key.id for key in keys}) == len({key.digest for key in keys}) == 1000
    assert {len(key.id) for key in keys} == {ID_LENGTH}


def test_a_key_is_not_shown() -> None:
    """A key's text is in `text` only; the error about a malformed key repeats no part of it."""
    key = make(os.urandom)
    assert key.text[15:58] not in f"{key!r} {key} {[key]}"
    with pytest.raises(ValueError, match=r"^this is not a key$"):
        AccessKey("pqs_hunter2")
