"""Results on standard output, in the format that was asked for: tables, the service's own JSON, CSV, names."""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

import click

from app.cli.terminal import BOLD, cut, has_colours, padded, painted, plain, plain_json, width

TABLE, WIDE, JSON, NDJSON, CSV, NAME = FORMATS = ("table", "wide", "json", "ndjson", "csv", "name")
LONGEST = 60  # columns of a table's cell, except in the last column; `wide` has the whole of it

T = TypeVar("T")


class Column(NamedTuple, Generic[T]):
    """A column of tables and of CSV. `value` is the cell of a row; `colour`, if there is one, its colour.

    `least` is its width in a table that is printed line by line.
    """

    title: str
    value: Callable[[T], object]
    colour: Callable[[T], str] | None = None
    wide: bool = False  # in `wide` and `csv`, and not in `table`
    least: int = 0


class View(NamedTuple, Generic[T]):
    """How rows of one kind are shown."""

    columns: Sequence[Column[T]]
    name: Callable[[T], object]  # what other commands take


class Printer:
    """Prints results. Formats differ; what is printed is flushed at once.

    JSON is the service's own bytes, a line for each answer (`json`), or for each item of an answer (`ndjson`). On a
    terminal, characters in it that would steer the terminal become their JSON escapes.
    """

    def __init__(self, format_: str) -> None:
        self.format = format_
        self.is_json = format_ in {JSON, NDJSON}
        self._colours = format_ in {TABLE, WIDE} and has_colours()
        self._terminal = sys.stdout.isatty()
        self._widths: list[int] = []  # of the columns, fixed by the first page
        self._begun = False

    def body(self, body: bytes) -> None:
        """Print a line of JSON."""
        click.echo(plain_json(body) if self._terminal else body)

    def one(self, item: T, body: bytes, view: View[T]) -> None:
        """Print one item; `body` is the answer that it came in. A table has a line for each column."""
        if self.is_json:
            self.body(body)
        elif self.format in {TABLE, WIDE}:
            columns = self._columns(view)
            titles = max(width(column.title) for column in columns)
            for column in columns:
                title = painted(padded(column.title, titles), BOLD if self._colours else "")
                text = self._text(column.value(item), whole=True)
                click.echo(f"{title}  {painted(text, _colour(column, item)) if self._colours else text}".rstrip())
        else:
            self._rows([item], view)

    def page(self, items: Sequence[T], body: bytes, view: View[T]) -> None:
        """Print a page of items; `body` is the answer that they came in."""
        if self.format == JSON:
            self.body(body)
        elif self.format == NDJSON:
            for item in items_in(body):
                self.body(item)
        else:
            self._rows(items, view)

    def line(self, item: T, body: bytes, view: View[T]) -> None:
        """Print an item of a stream; `body` is the line that it came in."""
        if self.is_json:
            self.body(body)
        else:
            self._rows([item], view)

    def note(self, text: str) -> None:
        """Tell a person something beside the results, on standard error."""
        if self.format in {TABLE, WIDE}:
            click.echo(f"pqs: {plain(text)}", err=True)

    def _columns(self, view: View[T]) -> Sequence[Column[T]]:
        return [column for column in view.columns if self.format in {WIDE, CSV} or not column.wide]

    def _rows(self, items: Sequence[T], view: View[T]) -> None:
        columns = self._columns(view)
        if self.format == NAME:
            lines = [plain(str(view.name(item))) for item in items]
        elif self.format == CSV:
            lines = [] if self._begun else [_csv([column.title for column in columns])]
            lines += [_csv([self._text(column.value(item)) for column in columns]) for item in items]
        else:
            lines = self._table(items, columns)
        self._begun = True
        if lines:
            click.echo("\n".join(lines))

    def _table(self, items: Sequence[T], columns: Sequence[Column[T]]) -> list[str]:
        last = columns[-1]
        rows = [[self._text(each.value(item), whole=each is last) for each in columns] for item in items]
        lines = []
        if not self._begun:
            titles = [column.title.upper() for column in columns]
            widths = [max(map(width, cells)) for cells in zip(titles, *rows, strict=True)]
            self._widths = [max(each, column.least) for each, column in zip(widths, columns, strict=True)]
            head = "  ".join(map(padded, titles, self._widths)).rstrip()
            lines.append(painted(head, BOLD if self._colours else ""))
        for item, row in zip(items, rows, strict=True):
            cells = [padded(cell, wide) for cell, wide in zip(row, self._widths, strict=True)]
            cells[-1] = cells[-1].rstrip()
            if self._colours:
                cells = [painted(cell, _colour(column, item)) for cell, column in zip(cells, columns, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return lines

    def _text(self, value: object, *, whole: bool = False) -> str:
        if value is None:
            return "" if self.format == CSV else "-"
        if isinstance(value, datetime):
            return instant(value, exact=self.format in {WIDE, CSV})
        text = plain(str(value))
        return cut(text, LONGEST) if self.format == TABLE and not whole else text


def instant(time: datetime, *, exact: bool) -> str:
    """A time in UTC: to the second, or as exact as it is."""
    text = time.astimezone(UTC).isoformat(timespec="auto" if exact else "seconds")
    return text.removesuffix("+00:00") + "Z"


def span(seconds: float) -> str:
    """A duration for people: its two largest units."""
    units = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
    rest = int(seconds)
    parts: list[str] = []
    for name, size in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{name}")
    return "".join(parts[:2]) or "0s"


def compact(value: object) -> str:
    """A value as JSON on one line."""
    import msgspec  # noqa: PLC0415 - help needs none of it

    return msgspec.json.encode(value).decode()


def _colour(column: Column[T], item: T) -> str:
    return column.colour(item) if column.colour else ""


def _csv(cells: Sequence[str]) -> str:
    """A line as in RFC 4180, without its end."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def items_in(body: bytes) -> list[bytes]:
    """The bytes of each item of a page."""
    import msgspec  # noqa: PLC0415 - help needs none of it

    class Page(msgspec.Struct):
        items: list[msgspec.Raw]

    return [bytes(item) for item in msgspec.json.decode(body, type=Page).items]
