"""How many bytes a page has at most: a page of a thousand rows may otherwise be as large as the rows can be."""

from collections.abc import Sequence

PAGE_BYTES = 8 * 1024 * 1024


def rows_that_fit(rows: Sequence[bytes], limit: int = PAGE_BYTES) -> int:
    """How many of the encoded rows, from the first on, a page holds: one at least, so that each page goes on.

    The row after them is the first of the next page.
    """
    size = 0
    for number, row in enumerate(rows):
        size += len(row) + 1  # with the comma, or the line's end
        if size > limit and number > 0:
            return number
    return len(rows)
