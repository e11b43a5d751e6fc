"""Lists of workflows: by their last change or by key, page by page."""

import functools
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from msgspec import Struct
from sqlalchemy import text

from app.domain.workflows import Workflow
from app.store.database import Connection
from app.store.statements import Statement
from app.store.workflows import JSON_PLACES, workflow_of

AT_ONCE = 8  # rows of a list that are fetched in one go; each may have a state of 1 MiB
MAX_CODE_POINT = 0x10FFFF
SURROGATES = range(0xD800, 0xE000)  # code points that no text has

ChangeKey = tuple[datetime, str]  # updated_at, workflow_key: the place of a workflow in every order


class ListOrder(StrEnum):
    """The order of a list of workflows."""

    OLDEST = "oldest"  # change first
    NEWEST = "newest"  # change first
    KEY = "key"


class WorkflowFilter(Struct, frozen=True, kw_only=True):
    """Which workflows are in a list. None matches any.

    `prefixes` are what the caller may read, `key_prefix` is what it asked for.
    """

    order: ListOrder = ListOrder.OLDEST
    key_prefix: str | None = None
    updated_since: datetime | None = None
    prefixes: Sequence[str] | None = None

    @property
    def is_full_scan(self) -> bool:
        """Whether no index finds the rows of a page in their order."""
        if self.prefixes is not None:
            return True
        return (self.updated_since if self.order is ListOrder.KEY else self.key_prefix) is not None


_KEY = 'workflow_key COLLATE "C"'  # as the index by key has it: in the order of bytes
_PLACE = "(CAST(:updated_at AS timestamptz), CAST(:workflow_key AS text))"
_ORDERS = {  # the condition of the rows after a place, and the order
    ListOrder.OLDEST: (f"(updated_at, workflow_key) > {_PLACE}", "updated_at, workflow_key"),
    ListOrder.NEWEST: (f"(updated_at, workflow_key) < {_PLACE}", "updated_at DESC, workflow_key DESC"),
    ListOrder.KEY: (f"{_KEY} > CAST(:workflow_key AS text)", _KEY),
}
_CONDITIONS = {
    "since": "updated_at >= CAST(:since AS timestamptz)",
    "first": f"{_KEY} >= CAST(:first AS text)",
    "end": f"{_KEY} < CAST(:end AS text)",
    "prefixes": "workflow_key ^@ ANY(CAST(:prefixes AS text[]))",
}


@functools.cache
def list_statement(order: ListOrder, conditions: frozenset[str]) -> Statement:
    """The statement for a page of workflows in this order; `after` is the condition of the rows after a place."""
    after, by = _ORDERS[order]
    found = [after] if "after" in conditions else []
    found += [condition for name, condition in _CONDITIONS.items() if name in conditions]
    where = f" WHERE {' AND '.join(found)}" if found else ""
    return Statement(text(f"SELECT * FROM workflow_state{where} ORDER BY {by} LIMIT CAST(:limit AS bigint)"))  # noqa: S608 - texts of ours


async def get_page(
    connection: Connection, wanted: WorkflowFilter, *, after: ChangeKey | None, limit: int
) -> tuple[list[Workflow], bool]:
    """The first rows that match, in the order wanted, after `after` if given.

    They are up to `limit`, and about PAGE_BYTES of JSON; the second value says whether more follow.
    """
    given: dict[str, object] = {}
    conditions: set[str] = set()
    if after is not None:
        conditions.add("after")
        given |= {"updated_at": after[0], "workflow_key": after[1]}
    if wanted.updated_since is not None:
        given["since"] = wanted.updated_since
    if wanted.key_prefix is not None:
        given["first"] = wanted.key_prefix
        if (end := after_prefix(wanted.key_prefix)) is not None:
            given["end"] = end
    if wanted.prefixes is not None:
        given["prefixes"] = list(wanted.prefixes)
    statement = list_statement(wanted.order, frozenset(conditions | given.keys() & _CONDITIONS.keys()))
    rows, more = await statement.page(connection, limit=limit, at_once=AT_ONCE, json=JSON_PLACES, **given)
    return [workflow_of(row) for row in rows], more


def after_prefix(prefix: str) -> str | None:
    """The first text, in the order of bytes in UTF-8, after all texts that begin with `prefix`; None without one."""
    kept = prefix.rstrip(chr(MAX_CODE_POINT))
    if not kept:
        return None
    next_ = ord(kept[-1]) + 1
    return kept[:-1] + chr(SURROGATES.stop if next_ in SURROGATES else next_)
