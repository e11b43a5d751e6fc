"""Workflow state, changed by compare-and-swap: each commit names the version that it builds on.

A commit with an action id (`action_id` in its provenance) is applied once, however often it is sent, so the client
repeats it when no answer came. The client does not repeat a commit without one: the first may have been applied, and
the second would fail, or be applied as well.
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime
from typing import overload
from urllib.parse import quote
from uuid import uuid4
from weakref import WeakValueDictionary

import httpx
import msgspec

from app.answers import WorkflowPage
from app.domain.workflows import Committed, State, Workflow
from pqs_client.connection import JSON, Caller, read
from pqs_client.problems import NotFoundError, PreconditionFailedError

PATH = "/v1/workflows"

UPDATE_EFFECT = "update"  # the effect_id of an update that names none
PATIENCE = 60.0  # seconds of conflicts, after which an update gives up
# An update that meets two conflicts in a row has a hot key before it, where most attempts fail and cost the others
# time. So the bound of its waits begins at this many times what a commit takes, doubles, and ends at LONGEST_WAIT.
HOT = 32
LONGEST_WAIT = 4.0  # seconds


class Workflows:
    """Calls that read and change workflows."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, key: str, *, known: Workflow | None = None) -> Workflow:
        """The row. Raises NotFoundError.

        `known` is the row as it was read before. While its version is unchanged, the service answers 304 without a
        body, and `known` itself is returned.
        """
        headers = {} if known is None else {"If-None-Match": f'"{known.version}"'}
        response = await self._caller.call("GET", _path(key), headers=headers)
        return known if known is not None and response.status_code == 304 else read(response, Workflow)

    async def create(
        self, key: str, state: Mapping[str, object], provenance: Mapping[str, object], *, schema_version: int = 1
    ) -> Committed:
        """Make version 1. Raises PreconditionFailedError when there is a row, ActionConflictError as `commit` does.

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
        """Make the version after `expected_version`. Raises PreconditionFailedError when the row is at another.

        With an action id that was committed before, nothing is written, and the answer is the one of then
        (`replayed`). Raises ActionConflictError when that was with another state.
        """
        return await self._put(key, state, provenance, schema_version, {"If-Match": f'"{expected_version}"'})

    async def pages(
        self, *, updated_since: datetime | None = None, limit: int | None = None, cursor: str | None = None
    ) -> AsyncGenerator[WorkflowPage, None]:
        """Workflows, those that changed before `updated_since` left out, page by page, oldest change first.

        To follow changes, ask again from the last `updated_at` less the service's statement time-out (5 s by
        default): commits can overtake each other.
        """
        while True:
            params = {"updated_since": updated_since, "limit": limit, "cursor": cursor}
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
        """Commit what `reducer` makes of the state, once, whoever else commits meanwhile and whatever is lost.

        `reducer` gets the state as it is (its own copy: it may change and return that), and returns the new state,
        or None when there is nothing to do: then nothing is committed, and None is returned. It is called again for
        each conflict, so it should do nothing but compute; what the outside has to see is done after this returned.
        It is a plain function, because what is awaited between read and commit only makes conflicts likelier.

        A workflow that does not exist is NotFoundError, unless `initial` says what the reducer gets then; {} will do.
        `provenance` goes with the commit; effect_id and timestamp are made where it has none, the action id always:
        what is computed anew is another action, so ValueError is raised for one that is given. The schema version
        stays as it is. ValueError too for NaN and Infinity, which are no JSON.

        Updates of one key by one client take turns. After a conflict an update computes again at once, from the row
        that the conflict has; after every second one it waits a random share of a growing time, and reads again.
        Raises PreconditionFailedError after `patience` seconds of conflicts.
        """
        if provenance is not None and "action_id" in provenance:
            raise ValueError("an update makes its own action id; `commit` takes one")
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn:  # updates of one client would only be in each other's way
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
        json.dumps(body, allow_nan=False, default=str)  # msgspec alone would make null of NaN and Infinity
        response = await self._caller.call(
            "PUT",
            _path(key),
            repeatable="action_id" in provenance,
            headers={"Content-Type": JSON, **condition},
            content=msgspec.json.encode(body),
        )
        return _committed(response)


def _committed(response: httpx.Response) -> Committed:
    replayed = response.headers.get("idempotency-replayed") == "true"
    return Committed(read(response, Workflow), replayed)


def _path(key: str) -> str:
    """The path of a workflow. Dots are encoded as well: `..` would be taken for the folder above."""
    return f"{PATH}/{quote(key, safe='').replace('.', '%2E')}"
