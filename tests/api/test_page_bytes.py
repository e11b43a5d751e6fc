"""How many rows a page holds by their bytes."""

import pytest

from app.api.page_bytes import PAGE_BYTES, rows_that_fit


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([], 10, 0),
        ([4, 4], 10, 2),
        ([4, 5], 10, 1),
        ([99, 1], 10, 1),
        ([1, 99, 1], 10, 1),
        ([0] * 10, 10, 10),
        ([0] * 11, 10, 10),
    ],
)
def test_rows_that_fit(sizes: list[int], limit: int, expected: int) -> None:
    """Rows are taken while they fit with what separates them; one is always taken, so that a list goes on."""
    assert rows_that_fit([b"x" * size for size in sizes], limit) == expected


def test_a_page_has_eight_mebibytes() -> None:
    """The largest rows, of 64 KiB, make a page of some hundred and thirty."""
    assert PAGE_BYTES == 8 * 1024 * 1024
    assert rows_that_fit([b"x" * 65_000] * 1000) == 129
