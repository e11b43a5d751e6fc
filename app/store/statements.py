"""Statements that SQLAlchemy writes and asyncpg executes.

Execution through SQLAlchemy costs more than the database: for one row by key 490 µs of processor time, against 77 µs
with asyncpg only; for 32 rows 36 µs a row, against 6 µs (`docs/decisions/0006-asyncpg.md`). So a statement is
compiled once, at its first use, and handed to asyncpg as text.
"""

import functools
from collections.abc import Sequence

from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import ClauseElement

from app.store.database import Connection, Record

PAGE_BYTES = 8 * 1024 * 1024  # of JSON, after which a page ends

_DIALECT = postgresql.asyncpg.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here


class Statement:
    """A statement of SQLAlchemy Core. Parameters are given by name: arrays as lists, jsonb as text."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement

    @functools.cached_property
    def _compiled(self) -> tuple[str, tuple[str, ...], dict[str, object]]:
        """Its text, its parameters' names in order, and their defaults. Compiled at first use: a start needs few."""
        compiled = self._statement.compile(dialect=_DIALECT)
        own = {name: value for name, value in compiled.params.items() if value is not None}
        return str(compiled), tuple(getattr(compiled, "positiontup", None) or ()), own

    @property
    def text(self) -> str:
        """The statement in the form that asyncpg accepts."""
        return self._compiled[0]

    def arguments(self, given: dict[str, object]) -> list[object]:
        """The parameters in the order of the text. Raises KeyError for a missing one."""
        _, names, own = self._compiled
        return [given[name] if name in given else own[name] for name in names]

    async def rows(self, connection: Connection, **given: object) -> list[Record]:
        """All rows."""
        return await connection.fetch(self.text, *self.arguments(given))

    async def page(
        self, connection: Connection, *, limit: int, at_once: int, json: Sequence[int], **given: object
    ) -> tuple[list[Record], bool]:
        """The first `limit` rows, or fewer when they have PAGE_BYTES of JSON, one at least; and whether more follow.

        `json` has the places of the columns that may be large. No more than PAGE_BYTES and `at_once` rows are held.
        """
        page: list[Record] = []
        size = 0
        async with connection.transaction():
            cursor = await connection.cursor(self.text, *self.arguments({**given, "limit": limit + 1}))
            while rows := await cursor.fetch(at_once):
                for row in rows:
                    size += sum(len(row[place]) for place in json)
                    if len(page) == limit or (size > PAGE_BYTES and page):
                        return page, True
                    page.append(row)
        return page, False

    async def value(self, connection: Connection, **given: object) -> object:
        """The first column of the first row, or None without rows."""
        value: object = await connection.fetchval(self.text, *self.arguments(given))
        return value
