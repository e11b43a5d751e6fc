"""Correlation ids: which ids of a client are accepted, and which are replaced."""

import subprocess
import sys
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
    """An id of 1 to 128 printable ASCII characters comes back unchanged; an id that is not a UUID is not stored."""
    headers = [(HEADER, value.encode())]
    assert (correlation(headers), stored(headers)) == (value, None)


@pytest.mark.parametrize("value", [GIVEN, GIVEN.upper(), GIVEN.replace("-", ""), f"{{{GIVEN}}}", f"urn:uuid:{GIVEN}"])
def test_a_uuid_is_stored_too(value: str) -> None:
    """A UUID in any of its forms comes back unchanged, and is stored."""
    headers = [(HEADER, value.encode())]
    assert (correlation(headers), stored(headers)) == (value, UUID(GIVEN))


@pytest.mark.parametrize("value", [b"", b"  ", b"!" * 129, b"\xc3\xa4", b"a\x01", b"a\tb", b"\x7f", b"\x00"])
def test_anything_else_is_replaced(value: bytes) -> None:
    """An id that is empty, too long or not printable counts as absent: a new one is made, and none is stored."""
    headers = [(HEADER, value)]
    made = correlation(headers)
    assert (str(UUID(made)), UUID(made).version, stored(headers)) == (made, 4, None)


def test_without_the_field_an_id_is_made() -> None:
    """Each request without an id gets a new one; of several fields the first counts."""
    assert correlation([]) != correlation([(b"x", b"y")])
    assert correlation([(HEADER, b"a"), (HEADER, GIVEN.encode())]) == "a"
    assert (stored([]), stored([(HEADER, b"a"), (HEADER, GIVEN.encode())])) == (None, None)


def test_ids_are_uuids() -> None:
    """Ids made by the service are UUIDs of version 4."""
    made = {UUID(new_id()) for _ in range(100)}
    assert len(made) == 100
    assert {(each.version, each.variant) for each in made} == {(4, UUID(GIVEN).variant)}


FORKING = """
import os
from app.api.correlation import new_id

new_id()
if (child := os.fork()) == 0:
    print(new_id(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(new_id())
"""


def test_a_forked_process_makes_ids_of_its_own() -> None:
    """A server that imports the service and then forks its workers makes no id twice."""
    run = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True)
    one, other = run.stdout.split()
    assert one[:23] != other[:23]
