"""Statements that SQLAlchemy writes and asyncpg runs.

SQLAlchemy's own execution costs more than the database: for one row by key 490 µs of processor time against 77 for
asyncpg alone, for 32 rows 36 µs a row against 6 (`docs/decisions/0006-asyncpg.md`). So a statement is compiled once,
when its module is read, and handed to asyncpg as text.
"""

from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import ClauseElement

from app.store.database import Connection, Record

_DIALECT = postgresql.asyncpg.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here


class Statement:
    """A statement of SQLAlchemy Core. Its bound parameters are given by name; arrays as lists, jsonb as text."""

    def __init__(self, statement: ClauseElement) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self.text = str(compiled)
        self._names: tuple[str, ...] = tuple(getattr(compiled, "positiontup", None) or ())
        self._own = {name: value for name, value in compiled.params.items() if value is not None}

    def arguments(self, given: dict[str, object]) -> list[object]:
        """The parameters in the order in which the text counts them. Raises KeyError for one that is missing."""
        return [given[name] if name in given else self._own[name] for name in self._names]

    async def rows(self, connection: Connection, **given: object) -> list[Record]:
        """All rows."""
        return await connection.fetch(self.text, *self.arguments(given))

    async def value(self, connection: Connection, **given: object) -> object:
        """The first column of the first row, or None without one."""
        value: object = await connection.fetchval(self.text, *self.arguments(given))
        return value
