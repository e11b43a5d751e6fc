"""Workflow state, changed by compare-and-swap: each commit names the version that it builds on.

A commit with an action id (`action_id` in its provenance) is applied once, however often it is sent, so the client
repeats it if no answer came. The client does not repeat a commit without an action id: the first may have been
applied, and the second would fail, or be applied, too.
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, overload
from urllib.parse import quote
from uuid import uuid4
from weakref import WeakValueDictionary

import httpx
import msgspec

from app.domain.workflows import Committed, State, Workflow
from app.wire.answers import WorkflowPage
from pqs_client.connection import JSON, Caller, read
from pqs_client.problems import NotFoundError, PreconditionFailedError, UnexpectedAnswerError

PATH = "/v1/workflows"

UPDATE_EFFECT = "update"  # the effect_id of an update without one
PATIENCE = 60.0  # seconds of conflicts, after which an update gives up
# An update with two conflicts in a row works on a hot key, where most attempts fail and slow down the others. So its
# wait is drawn up to a bound, which begins at HOT times the duration of a commit, doubles, and ends at LONGEST_WAIT.
HOT = 32
LONGEST_WAIT = 4.0  # seconds


class Workflows:
    """Calls that read and change workflows."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, key: str, *, known: Workflow | None = None) -> Workflow:
        """The row. Raises NotFoundError, and UnexpectedAnswerError for the row of another key.

        `known` is the row as it was read before. While its version is unchanged, the service answers 304 without a
        body, and `known` itself is returned.
        """
        headers = {} if known is None else {"If-None-Match": f'"{known.version}"'}
        response = await self._caller.call("GET", _path(key), headers=headers)
        return known if known is not None and response.status_code == 304 else _row(response, key)

    async def create(
        self, key: str, state: Mapping[str, object], provenance: Mapping[str, object], *, schema_version: int = 1
    ) -> Committed:
        """Make version 1. Raises PreconditionFailedError if there is a row, ActionConflictError as `commit` does.

        `provenance` must have `effect_id` and `timestamp` (with a zone) and may have `action_id` and more.
        """
        return await self._put(key, state, provenance, schema_version, {"If-None-Match": "*"})

    async def commit(
        self,
        key: str,
        expected_version: int,
        state: Mapping[str, object],
        provenance: Mapping[str, object],
        *,
        schema_version: int = 1,
    ) -> Committed:
        """Make the version after `expected_version`. Raises PreconditionFailedError if the row is at another one.

        If its action id was committed before, nothing is written, and the first answer is repeated (`replayed`).
        Raises ActionConflictError if the action was committed with another state.
        """
        return await self._put(key, state, provenance, schema_version, {"If-Match": f'"{expected_version}"'})

    async def pages(
        self,
        *,
        order: Literal["oldest", "newest", "key"] = "oldest",
        key_prefix: str | None = None,
        updated_since: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[WorkflowPage, None]:
        """The workflows that match all filters, page by page: the oldest or the newest change first, or by key.

        `key_prefix` is the beginning of their keys; they changed at `updated_since` or later.

        To follow changes, ask again from the last `updated_at` minus the service's statement timeout (5 s by
        default): commits can overtake each other.
        """
        while True:
            params = {
                "order": order,
                "key_prefix": key_prefix,
                "updated_since": updated_since,
                "limit": limit,
                "cursor": cursor,
            }
            page = await self._caller.get(PATH, WorkflowPage, params)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    @overload
    async def update(
        self,
        key: str,
        reducer: Callable[[State], Mapping[str, object]],
        *,
        initial: Mapping[str, object] | None = None,
        provenance: Mapping[str, object] | None = None,
        schema_version: int | None = None,
        patience: float = PATIENCE,
    ) -> Workflow: ...

    @overload
    async def update(
        self,
        key: str,
        reducer: Callable[[State], Mapping[str, object] | None],
        *,
        initial: Mapping[str, object] | None = None,
        provenance: Mapping[str, object] | None = None,
        schema_version: int | None = None,
        patience: float = PATIENCE,
    ) -> Workflow | None: ...

    async def update(
        self,
        key: str,
        reducer: Callable[[State], Mapping[str, object] | None],
        *,
        initial: Mapping[str, object] | None = None,
        provenance: Mapping[str, object] | None = None,
        schema_version: int | None = None,
        patience: float = PATIENCE,
    ) -> Workflow | None:
        """Commit the state that `reducer` returns, exactly once, despite concurrent commits and lost answers.

        `reducer` gets a copy of the present state, which it may change and return, and returns the new state. If it
        returns None, nothing is committed, and this returns None. It is called again after each conflict, so it must
        only compute; cause effects after this has returned. It is a plain function, because waits between read and
        commit would only cause conflicts.

        Raises NotFoundError for a workflow that does not exist, unless `initial` gives the state to begin with; {} is
        enough. `provenance` is stored with the commit; missing effect_id and timestamp are added. Each attempt makes
        its own action id, because a new computation is another action: a given one raises ValueError. The schema
        version stays as it is. NaN and Infinity, which are not JSON, raise ValueError, too.

        Updates of one key by one client take turns. After a conflict an update computes again at once, from the row
        in the conflict; after every second one it waits for a random part of a growing time, and reads again. Raises
        PreconditionFailedError after `patience` seconds of conflicts.
        """
        if provenance is not None and "action_id" in provenance:
            raise ValueError("an update makes its own action id; `commit` takes one")
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn:  # concurrent updates of one client would only conflict
            return await self._update(key, reducer, initial, provenance or {}, schema_version, patience)

    async def _update(
        self,
        key: str,
        reducer: Callable[[State], Mapping[str, object] | None],
        initial: Mapping[str, object] | None,
        provenance: Mapping[str, object],
        schema_version: int | None,
        patience: float,
    ) -> Workflow | None:
        clock = asyncio.get_running_loop().time
        end = clock() + patience
        conflicts = 0
        bound = 0.0
        row = await self._find(key, required=initial is None)
        while True:
            state = reducer(copy.deepcopy(dict(initial or {})) if row is None else row.state)
            if state is None:
                return None
            made = {"effect_id": UPDATE_EFFECT, "timestamp": datetime.now(UTC), "action_id": str(uuid4())}
            why = {**made, **provenance}
            began = clock()
            try:
                if row is None:
                    return (await self.create(key, state, why, schema_version=schema_version or 1)).workflow
                schema = schema_version or row.schema_version
                return (await self.commit(key, row.version, state, why, schema_version=schema)).workflow
            except PreconditionFailedError as conflict:
                if clock() >= end:
                    raise
                row = conflict.current
            conflicts += 1
            if conflicts % 2 == 0:
                bound = min(2 * bound or HOT * (clock() - began), LONGEST_WAIT)
                await self._caller.sleep(self._caller.jitter() * bound)
                row = None  # others have committed meanwhile
            row = row or await self._find(key, required=initial is None)

    async def _find(self, key: str, *, required: bool) -> Workflow | None:
        try:
            return await self.get(key)
        except NotFoundError:
            if required:
                raise
            return None

    async def _put(
        self,
        key: str,
        state: Mapping[str, object],
        provenance: Mapping[str, object],
        schema_version: int,
        condition: dict[str, str],
    ) -> Committed:
        body = {"state": state, "provenance": provenance, "schema_version": schema_version}
        json.dumps(body, allow_nan=False, default=str)  # msgspec would write NaN and Infinity as null
        response = await self._caller.call(
            "PUT",
            _path(key),
            repeatable="action_id" in provenance,
            headers={"Content-Type": JSON, **condition},
            content=msgspec.json.encode(body),
        )
        replayed = response.headers.get("idempotency-replayed") == "true"
        return Committed(_row(response, key), replayed)


def _row(response: httpx.Response, key: str) -> Workflow:
    """The row of a workflow. Raises UnexpectedAnswerError for that of another: a proxy has changed the path."""
    row = read(response, Workflow)
    if row.workflow_key != key:
        raise UnexpectedAnswerError(
            f"the workflow {key!r} was asked for, and the answer is about {row.workflow_key!r}: a proxy in between "
            "changes paths (it may merge slashes)"
        )
    return row


def _path(key: str) -> str:
    """The path of a workflow. Dots are encoded, too: servers would take `..` for the folder above."""
    return f"{PATH}/{quote(key, safe='').replace('.', '%2E')}"
