"""The store of workflows: one row each, changed by compare-and-swap. Every action is applied once."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal

import msgspec

from app.concurrency.lanes import Lane, Lanes, Side
from app.concurrency.worker import Worker, until_stopped
from app.domain.positions import MAX_NUMBER
from app.domain.workflows import (
    MAX_KEY,
    MAX_SCHEMA_VERSION,
    MAX_STATE,
    NONE,
    ActionConflict,
    Commit,
    Committed,
    Provenance,
    StateConflict,
    Workflow,
)
from app.errors import ActionConflictError, ContentionError, Fault, InvalidInputError, PqsError
from app.store import quotas, workflows
from app.store.database import Database, LostRaceError
from app.store.failures import refused_values
from app.store.workflows import PRUNE_ROWS, CommitOutcome
from app.wire.events import EARLIEST, LATEST
from app.wire.faults import depth, fault_of, find_nul
from app.wire.syntax import MAX_NESTING

log = logging.getLogger(__name__)

COMMIT_ATTEMPTS = 10  # attempts of a commit that loses races against others
LARGEST = 100  # commits or reads that one statement joins; each may carry a state of 1 MiB
MAX_PROVENANCE = 64 * 1024  # bytes as compact JSON; it is stored with the action, too
LONG = 1024  # sum of exponents up to which the digits they add are not counted
QUOTA_LOOK = 2.0  # seconds between two looks whether there are quotas
QUOTA_TRUST = 4.0  # seconds for which a look counts
PRUNE_EVERY = 60.0  # seconds between two rounds of pruning, or the retention if that is less
PRUNE_LEAST = 1.0  # seconds between two rounds, at least


class WorkflowStore:
    """Reads and commits of single workflows. Requests that arrive while a statement runs form the next batch.

    With `joined`, whose sessions have a short `lock_timeout`, a commit to a row that another client keeps locked goes
    on alone, on `waiting`, beside the lane.
    """

    def __init__(
        self,
        database: Database,
        *,
        joining: bool = True,
        watch: "QuotaWatch | None" = None,
        joined: Database | None = None,
        waiting: Database | None = None,
        is_traced: bool = False,
    ) -> None:
        self._database = database
        self._joined = joined or database
        self._waiting = waiting or database
        self._watch = watch or QuotaWatch(database)
        self._joining = joining
        self._reads = Lane(self._read, largest=LARGEST, name="workflow reads", is_traced=is_traced)
        side = None
        if joined is not None:
            side = Side[Commit, CommitOutcome | None](
                lambda commit: commit.workflow_key, self._locked, self._commit_alone
            )
        self._commits = Lanes(self._commit, largest=LARGEST, side=side, name="commits", is_traced=is_traced)

    async def get_state(self, workflow_key: str) -> Workflow | None:
        """The row of one workflow, or None. Raises InvalidInputError for an invalid key."""
        _check_key(workflow_key)
        if self._joining:
            return await self._reads.ask(workflow_key)
        [row] = await self._read([workflow_key])
        return row

    async def try_commit(
        self,
        workflow_key: str,
        expected_version: int | None,
        state: Mapping[str, object],
        provenance: Mapping[str, object],
        *,
        schema_version: int = 1,
    ) -> Committed | StateConflict:
        """Write `state` if the workflow is still at `expected_version`; None or 0: if it has no row yet.

        An action (`provenance["action_id"]`) is applied once. If it was already committed to this workflow, with
        this state and schema version, the first answer is repeated, whatever the version is now; the rest of the
        provenance may differ. Raises ActionConflictError if it was committed with another state, InvalidInputError
        for values that can't be stored, RefusedValuesError for values that PostgreSQL refuses (by a constraint or a
        trigger of its operator), QuotaExceededError, ContentionError, and UnavailableError. After the last one the
        commit may or may not be stored; send it again with the same action id.
        """
        commit = _checked(workflow_key, expected_version or NONE, state, provenance, schema_version)
        for _ in range(COMMIT_ATTEMPTS):
            try:
                [outcome] = (
                    [await self._commits.ask(commit, len(commit.state) + len(commit.provenance))]
                    if self._joining
                    else await self._commit([commit])
                )
            except LostRaceError:
                continue
            if isinstance(outcome, ActionConflict):
                raise ActionConflictError(outcome.action_id, outcome.version)
            if outcome is not None:
                return outcome
        raise ContentionError(f"other writers were faster {COMMIT_ATTEMPTS} times in a row; nothing was written")

    async def close(self) -> None:
        """Answer the requests that were accepted, and accept no more."""
        await self._commits.close()
        await self._reads.close()

    async def _read(self, keys: list[str]) -> list[Workflow | None]:
        found = await self._database.read(workflows.get_states, keys)
        return [found.get(key) for key in keys]

    async def _locked(self, commits: list[Commit]) -> set[str]:
        return await self._joined.write(workflows.locked, [commit.workflow_key for commit in commits])

    async def _commit(self, commits: list[Commit]) -> Sequence[CommitOutcome | None]:
        return await self._commit_on(self._joined, commits)

    async def _commit_alone(self, commits: list[Commit]) -> Sequence[CommitOutcome | None]:
        return await self._commit_on(self._waiting, commits)

    async def _commit_on(self, database: Database, commits: list[Commit]) -> Sequence[CommitOutcome | None]:
        with refused_values():
            if await self._watch.finds_quotas():
                return await database.write(quotas.commit, commits)
            return await database.write_alone(workflows.commit, commits)


# --- Checks of commits
# -----------------------------------------------------------------------------------------------


def _checked(
    workflow_key: str,
    expected_version: int,
    state: Mapping[str, object],
    provenance: Mapping[str, object],
    schema_version: int,
) -> Commit:
    """A commit that PostgreSQL can store. Raises InvalidInputError with every fault."""
    _check_key(workflow_key)
    if not NONE <= expected_version <= MAX_NUMBER:
        raise InvalidInputError([Fault("#/expected_version", f"a number from {NONE} to 2^63-1 was expected")])
    faults: list[Fault] = []
    if not state:
        faults.append(Fault("#/state", "a non-empty object was expected"))
    if not 1 <= schema_version <= MAX_SCHEMA_VERSION:
        faults.append(Fault("#/schema_version", "a number from 1 to 2^31-1 was expected"))
    encoded_state = _encoded(state, "#/state", faults)
    if len(encoded_state) + _spelt_out(encoded_state, state) > MAX_STATE:
        faults.append(
            Fault(
                "#/state", f"larger than {MAX_STATE:,} bytes as compact JSON with numbers written without exponents"
            )
        )
    encoded = _encoded(provenance, "#/provenance", faults)
    if len(encoded) + _spelt_out(encoded, provenance) > MAX_PROVENANCE:
        faults.append(Fault("#/provenance", f"larger than {MAX_PROVENANCE:,} bytes as compact JSON"))
    action_id = None
    try:
        read = msgspec.json.decode(encoded, type=Provenance)
        action_id = read.action_id
        if not EARLIEST <= read.timestamp <= LATEST:
            faults.append(Fault("#/provenance/timestamp", "a time lies in the years 1900 to 9998, in UTC"))
    except msgspec.ValidationError as error:
        fault = fault_of(error, encoded)
        faults.append(Fault(f"#/provenance{fault.pointer[1:]}", fault.detail))
    if faults:
        raise InvalidInputError(faults)
    return Commit(workflow_key, expected_version, encoded_state.decode(), schema_version, encoded.decode(), action_id)


def _check_key(workflow_key: str) -> None:
    detail = None
    if not 1 <= len(workflow_key) <= MAX_KEY:
        detail = f"a key has 1 to {MAX_KEY} characters; this one has {len(workflow_key):,}"
    elif "\0" in workflow_key:
        detail = "a key cannot hold NUL: PostgreSQL cannot store it"
    elif workflow_key.encode(errors="ignore").decode() != workflow_key:
        detail = "a key is Unicode text; this one holds a lone surrogate"
    if detail is not None:
        raise InvalidInputError([Fault("#/path/workflow_key", detail)])


def _encoded(value: Mapping[str, object], pointer: str, faults: list[Fault]) -> bytes:
    """The compact JSON of an object. The faults of values that cannot be stored are added to `faults`."""
    try:
        encoded = msgspec.json.encode(value)
        if b"null" in encoded:  # msgspec writes NaN and Infinity as null, too
            json.dumps(value, allow_nan=False, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        faults.append(Fault(pointer, f"not JSON: {error}"))
        return b"{}"
    if b"\\u0000" in encoded and (nul_at := find_nul(msgspec.json.decode(encoded), pointer)) is not None:
        faults.append(Fault(nul_at, "a string here holds NUL (\\u0000), which PostgreSQL cannot store"))
    if encoded.count(b"{") + encoded.count(b"[") > MAX_NESTING and depth(value) > MAX_NESTING:
        faults.append(Fault(pointer, f"nested deeper than {MAX_NESTING} levels"))
    return encoded


_EXPONENT = re.compile(rb"[0-9]e[+-]?([0-9]{1,3})")


def _spelt_out(encoded: bytes, value: object) -> int:
    """The additional bytes of its numbers as PostgreSQL writes them: 1e300 has 301 digits there."""
    if sum(int(exponent) for exponent in _EXPONENT.findall(encoded)) < LONG:
        return 0
    longer, level = 0, [value]
    while level:
        longer += sum(len(f"{Decimal(repr(each)):f}") - len(repr(each)) for each in level if isinstance(each, float))
        containers = [each for each in level if isinstance(each, Mapping | list | tuple)]
        level = [one for each in containers for one in (each.values() if isinstance(each, Mapping) else each)]
    return longer


# --- Old actions ---------------------------------------------------------------------------------------------------


class QuotaWatch(Worker):
    """Whether any prefix has a quota, kept in memory: commits cost nothing more as long as none has.

    A quota counts for each commit that begins QUOTA_TRUST after it was set. Where this does not run, a commit looks
    itself.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found = False
        self._looked_at = float("-inf")

    async def finds_quotas(self) -> bool:
        """Whether there is one. Raises UnavailableError if nobody has been able to look lately."""
        if time.monotonic() > self._looked_at + QUOTA_TRUST:
            await self._look()
        return self._found

    async def run(self, stop: asyncio.Event) -> None:
        """Look from time to time, until `stop` (see Worker)."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except PqsError as error:
                log.debug("whether there are quotas is not known: %s", error)
            await asyncio.sleep(QUOTA_LOOK)

    async def _look(self) -> None:
        now = time.monotonic()
        self._found = await self._database.read(quotas.exist)
        self._looked_at = now


class Pruner(Worker):
    """Removes actions older than the retention. Many processes may run one; only one works at a time."""

    def __init__(self, database: Database, retention: timedelta) -> None:
        self._database = database
        self._retention = retention
        self._every = max(PRUNE_LEAST, min(PRUNE_EVERY, retention.total_seconds()))

    async def run(self, stop: asyncio.Event) -> None:
        """Remove old actions from time to time, until `stop` (see Worker)."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                removed = await self.prune()
            except Exception as error:  # noqa: BLE001 - no error may end the worker
                log.warning("old actions of workflows were not removed, trying again later: %s", error)
            else:
                if removed:
                    log.info("removed %d old actions of workflows", removed)

    async def prune(self) -> int:
        """Remove actions older than the retention, in small transactions, and return their number."""
        removed = 0
        while batch := await self._database.write(workflows.prune, self._retention):
            removed += batch
            if batch < PRUNE_ROWS:
                break
        return removed
