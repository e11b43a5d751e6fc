"""The `Prefer` header (RFC 7240)."""

import pytest

from app.api.preferences import APPLIED, minimal, preferences, wants_minimal


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["return=minimal"], {"return": "minimal"}),
        (['return="minimal"'], {"return": "minimal"}),
        (['Return = minimal ; foo="a;b,c"; bar, wait=10'], {"return": "minimal", "wait": "10"}),
        (["respond-async", "return=minimal"], {"respond-async": "", "return": "minimal"}),
        (['foo="a\\"b, return=minimal", bar'], {"foo": 'a"b, return=minimal', "bar": ""}),
        (["return=minimal, return=representation"], {"return": "minimal"}),
        ([" , ,return=minimal;;x,,"], {"return": "minimal"}),
        (['foo=""'], {"foo": ""}),
        (["respond-async, wait=100, handling=lenient"], {"respond-async": "", "wait": "100", "handling": "lenient"}),
        (["a, b c, d"], {"a": ""}),
        (['a="unfinished'], {}),
        (["=x", ""], {}),
        (["\xe4=1"], {}),
    ],
)
def test_preferences(fields: list[str], expected: dict[str, str]) -> None:
    """Names in any case, quoted values, parameters, empty items and repeated fields are read; the rest is ignored."""
    assert preferences([each.encode("latin-1") for each in fields]) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("return=minimal", True),
        ('return="Minimal"', True),
        ("wait=1, return=minimal; x", True),
        ("return=representation", False),
        ("minimal", False),
        ('foo="return=minimal"', False),
        ("return=representation, return=minimal", False),
    ],
)
def test_wants_minimal(value: str, expected: bool) -> None:
    """Only `return=minimal` asks for an answer without a body."""
    assert wants_minimal([(b"host", b"x"), (b"prefer", value.encode())]) is expected
    assert not wants_minimal([(b"host", b"x")])


@pytest.mark.parametrize(
    "value",
    [
        "a" * 16_000,
        "a;" * 8000,
        "a;b" * 5000 + "?",
        "a; " * 5000 + "?",
        '"' * 16_000,
        'a="' + "\\" * 16_000,
        "a=" * 8000,
        ", " * 8000,
    ],
)
def test_a_field_costs_what_it_is_long(value: str) -> None:
    """Parsing any field up to the size limit of a header takes little time."""
    preferences([value.encode()])


def test_the_answer_without_a_body() -> None:
    """An answer without a body is a 204 with `Preference-Applied`."""
    answer = minimal()
    assert (answer.status_code, answer.body, answer.raw_headers) == (204, b"", [APPLIED])
