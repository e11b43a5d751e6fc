"""What an operator does to one entity: it is forgotten, erased, or its node evicted."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from app.domain.changes import ChangeOutcome
from app.domain.decider import Decision, deregister, forget
from app.domain.events import ForgottenData, Name
from app.domain.folding import Save
from app.domain.positions import Position
from app.domain.registration import Ignored, Registration
from app.errors import ContentionError
from app.projection.changes import ChangeLog
from app.projection.entries import EntryBuilder
from app.store import audit, erasure
from app.store.audit import Act
from app.store.database import Connection, Database, LostRaceError
from app.store.failures import refused_values
from app.store.overdue import now
from app.store.registrations import REGISTRATIONS
from app.wire.answers import Erased

TRIES = 10  # of an act that loses races with other writers

# Looks at the row that was found, None for none, and raises an error if the act is not for it.
Check = Callable[[Registration | None], None]
Decide = Callable[[Registration | None, datetime], Decision | Ignored]


class Done(Struct, frozen=True):
    """An act that is committed: the row that it found, None for none, and what followed, or why nothing did."""

    found: Registration | None
    decided: Decision | Ignored


class Acts:
    """Carries out acts, each with its entry in the audit log, in one transaction.

    The events of these acts have no place in the source. So they leave the row's position alone, like the sweep, and
    the source's own next event still fits.
    """

    def __init__(self, database: Database, entries: EntryBuilder, log: ChangeLog) -> None:
        self._database = database
        self._entries = entries
        self._log = log

    async def forget(
        self,
        name: Name,
        position: Position | None,
        data: ForgottenData,
        *,
        check: Check,
        act: Act,
        correlation_id: UUID | None = None,
    ) -> Done:
        """Turn the row into a tombstone; where there is none, and a position is given, make one.

        Raises what `check` raises, and ContentionError if other writers were faster again and again.
        """

        def decide(row: Registration | None, at: datetime) -> Decision | Ignored:
            return forget(name, row, position, data, at, correlation_id)

        return await self._carry_out(name, decide, ChangeOutcome.FORGOTTEN, data.reason, check=check, act=act)

    async def deregister(
        self, name: Name, reason: str | None, *, check: Check, act: Act, correlation_id: UUID | None = None
    ) -> Done:
        """End the registration of a node, as its own `node.deregistered` would.

        `check` refuses an entity without a row. Raises as `forget` does.
        """

        def decide(row: Registration | None, at: datetime) -> Decision | Ignored:
            assert row is not None  # noqa: S101 - the check has seen it
            return deregister(row, at, correlation_id)

        return await self._carry_out(name, decide, ChangeOutcome.DEREGISTERED, reason, check=check, act=act)

    async def erase(self, name: Name, version: int, act: Act) -> Erased:
        """Erase what else is stored of an entity that was forgotten as this version: see `app.store.erasure`.

        It is a transaction of its own, after the forget: nobody waits for the row meanwhile, and it may be repeated.
        """
        letters = await erasure.find_letters(self._database, name)
        for _ in range(TRIES):
            try:
                return await self._database.write(_erase, name, version, letters, act)
            except LostRaceError:
                continue
        raise ContentionError(f"other writers were faster {TRIES} times in a row; nothing was erased")

    async def _carry_out(
        self, name: Name, decide: Decide, outcome: ChangeOutcome, reason: str | None, *, check: Check, act: Act
    ) -> Done:
        for _ in range(TRIES):
            try:
                with refused_values():
                    done = await self._database.write(self._attempt, name, decide, outcome, reason, check, act)
            except LostRaceError:
                continue
            if isinstance(done.decided, Decision):
                self._entries.committed([done])
                self._log.committed([done])
            return done
        raise ContentionError(f"other writers were faster {TRIES} times in a row; nothing was written")

    async def _attempt(
        self,
        connection: Connection,
        name: Name,
        decide: Decide,
        outcome: ChangeOutcome,
        reason: str | None,
        check: Check,
        act: Act,
    ) -> Done:
        row = await REGISTRATIONS.get_entity_state(connection, *name, lock=True)
        check(row)
        decided = decide(row, await now(connection))
        if isinstance(decided, Decision):
            changes = self._log.given(self._log.made(outcome, [decided], [row], reason))
            entries = self._entries.build([decided])
            # An operator's act is for held entities, too: it has no place among their messages.
            await REGISTRATIONS.upsert.save(connection, [Save(decided.row, row)], entries, changes, held_too=True)
        await audit.add(connection, act if isinstance(decided, Decision) else replace(act, outcome="ignored"))
        return Done(row, decided)


async def _erase(connection: Connection, name: Name, version: int, letters: list[int], act: Act) -> Erased:
    erased = await erasure.erase(connection, name, version, letters)
    counts = f"{erased.changes} changes, {erased.dead_letters} dead letters, {erased.messages} messages"
    await audit.add(connection, replace(act, outcome=counts))
    return erased
