"""The table of registrations: its columns, row ↔ Registration, and how rows are found by their keys."""

from typing import cast
from uuid import UUID

import msgspec
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    FromClause,
    Table,
    any_,
    bindparam,
    column,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import array

from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store.database import Record
from app.store.tables import RegistrationProjection, StateCount

# Not quoted: vulture would take the import for unused.
TABLE = cast(Table, RegistrationProjection.__table__)  # noqa: TC006
COUNTS = cast(Table, StateCount.__table__)  # noqa: TC006
COLUMNS = tuple(TABLE.c)
KEYS = (TABLE.c.entity_id, TABLE.c.domain)
STATES = {state.value: state for state in RegistrationState}
_decode = msgspec.json.Decoder(dict[str, object]).decode


def registration_of(row: Record) -> Registration:
    """A row of all columns, in their order, as a Registration."""
    entity_id, domain, state, node_type, node_version, capabilities, *rest = row
    return Registration(entity_id, domain, STATES[state], node_type, node_version, _decode(capabilities), *rest)


def arrays(*columns: ColumnElement[object], name: str) -> FromClause:
    """A table with a row for each item of the arrays, which are bound by the table's and the columns' names."""
    arrays = (bindparam(f"{name}_{c.key}", type_=ARRAY(c.type)) for c in columns)
    derived = func.unnest(*arrays).table_valued(*(column(str(c.key), c.type) for c in columns), name=name)
    return derived.render_derived(name=name)


def is_row_of(entity_id: ColumnElement[UUID], domain: ColumnElement[str]) -> ColumnElement[bool]:
    """Which row is an entity's, to be found by the primary key alone.

    What is joined on to the domain keeps the indexes out that begin with it: while the table is small they look as
    good to the planner, and the plan is kept while the table grows. So is one that joins an array with a small table
    by `=`: it reads the table from end to end, and looks for each row in the array. `= ANY` is joined by no other way
    than looking for each key in the index.
    """
    return (TABLE.c.entity_id == any_(array([entity_id]))) & (TABLE.c.domain.concat(literal_column("''")) == domain)
