"""The tables of a projection: their columns, record ↔ row, and the condition that finds rows by keys."""

import functools
from collections.abc import Callable
from enum import StrEnum
from typing import Generic, cast

import msgspec
from sqlalchemy import ARRAY, ColumnElement, Enum, FromClause, MetaData, any_, bindparam, column, func, literal_column
from sqlalchemy.dialects.postgresql import JSONB, array

from app.domain.projection import Projection
from app.domain.row_type import R
from app.store.database import Record

_decode = msgspec.json.Decoder(dict[str, object]).decode


class Rows(Generic[R]):
    """A projection bound to its tables.

    Statements are built from the columns of the tables, so a new column needs no change in the store.
    """

    def __init__(self, projection: Projection[R], metadata: MetaData, *, counts: str) -> None:
        """`counts` names the table of its counters.

        Raises ValueError if the fields of the row are not the table's columns, in their order. Enum and JSON columns
        must not be null.
        """
        self.projection = projection
        self.table = metadata.tables[projection.table]
        self.counts = metadata.tables[counts]
        self.columns = tuple(self.table.c)
        self.names = tuple(str(c.key) for c in self.columns)
        if self.names != projection.row.__struct_fields__:
            raise ValueError(f"the fields of a {projection.name} are not the columns of {projection.table}")
        self.keys = (self.table.c.entity_id, self.table.c.domain)
        self.counted_by = self.table.c[projection.counted_by]
        self.states = _values_of(cast("Enum", self.counted_by.type))
        forgotten_at = projection.forgotten_at
        # The condition for rows that are no tombstones.
        self.is_present = literal_column("true") if forgotten_at is None else self.table.c[forgotten_at].is_(None)
        self.json = tuple(str(c.key) for c in self.columns if isinstance(c.type, JSONB))
        self.json_places = tuple(place for place, c in enumerate(self.columns) if isinstance(c.type, JSONB))
        self._make: Callable[..., R] = projection.row
        self._conversions = [
            (place, _values_of(c.type).__getitem__ if isinstance(c.type, Enum) else _decode)
            for place, c in enumerate(self.columns)
            if isinstance(c.type, Enum | JSONB)
        ]
        self._more = len(self.columns)

    def row(self, record: Record) -> R:
        """The row of a record, which begins with all columns in their order; further values are ignored."""
        values = list(record)
        del values[self._more :]
        for place, convert in self._conversions:
            values[place] = convert(values[place])
        return self._make(*values)

    def is_row_of(self, entity_id: ColumnElement[object], domain: ColumnElement[str]) -> ColumnElement[bool]:
        """The condition for the row of this entity, written so that the planner uses only the primary key.

        The empty string appended to the domain excludes the indexes that begin with the domain. While the table is
        small, they look equally good, and PostgreSQL keeps such a plan while the table grows. `= ANY` excludes
        another plan: with `=` the planner joins an array to a small table by a scan of the whole table. With `= ANY`
        it must look up each key in the index.
        """
        is_entity = self.table.c.entity_id == any_(array([entity_id]))
        return is_entity & (self.table.c.domain.concat(literal_column("''")) == domain)


@functools.cache
def _values_of(enum: Enum) -> dict[str, StrEnum]:
    return {str(member.value): member for member in cast("type[StrEnum]", enum.enum_class)}


def arrays(*columns: ColumnElement[object], name: str) -> FromClause:
    """A table with a row for each item of the arrays. Their parameters are named <table>_<column>."""
    bound = (bindparam(f"{name}_{c.key}", type_=ARRAY(c.type)) for c in columns)
    derived = func.unnest(*bound).table_valued(*(column(str(c.key), c.type) for c in columns), name=name)
    return derived.render_derived(name=name)
