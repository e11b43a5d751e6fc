"""Correlation ids: what is taken from a client, and what is made in its place."""

from uuid import UUID

import pytest

from app.api.correlation import HEADER, correlation, new_id, stored

GIVEN = "3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d"


@pytest.mark.parametrize(
    "value",
    [
        "Root=1-67891233-abcdef012345678912345678",
        "x",
        "17",
        "a b",
        "!" * 128,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "z" * 36,
        "{" * 38,
    ],
)
def test_any_printable_text_is_given_back(value: str) -> None:
    """1 to 128 printable characters of ASCII are an id as they are; what is not a UUID is not stored."""
    headers = [(HEADER, value.encode())]
    assert (correlation(headers), stored(headers)) == (value, None)


@pytest.mark.parametrize("value", [GIVEN, GIVEN.upper(), GIVEN.replace("-", ""), f"{{{GIVEN}}}", f"urn:uuid:{GIVEN}"])
def test_a_uuid_is_stored_too(value: str) -> None:
    """A UUID in any of its forms is given back as it is, and stored."""
    headers = [(HEADER, value.encode())]
    assert (correlation(headers), stored(headers)) == (value, UUID(GIVEN))


@pytest.mark.parametrize("value", [b"", b"  ", b"!" * 129, b"\xc3\xa4", b"a\x01", b"a\tb", b"\x7f", b"\x00"])
def test_anything_else_is_replaced(value: bytes) -> None:
    """What is empty, too long or not printable counts as no id: a new one is made, and none is stored."""
    headers = [(HEADER, value)]
    made = correlation(headers)
    assert (str(UUID(made)), UUID(made).version, stored(headers)) == (made, 4, None)


def test_without_the_field_an_id_is_made() -> None:
    """Two requests without one have two ids; the first of several fields counts."""
    assert correlation([]) != correlation([(b"x", b"y")])
    assert correlation([(HEADER, b"a"), (HEADER, GIVEN.encode())]) == "a"
    assert (stored([]), stored([(HEADER, b"a"), (HEADER, GIVEN.encode())])) == (None, None)


def test_ids_are_uuids() -> None:
    """Ids that are made are UUIDs of version 4."""
    made = {UUID(new_id()) for _ in range(100)}
    assert len(made) == 100
    assert {(each.version, each.variant) for each in made} == {(4, UUID(GIVEN).variant)}
