"""Calls about entities: reads of one, several, all, the numbers by state and the overdue ones; what ends one."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from datetime import datetime
from typing import Literal, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct

from app.domain.events import DEFAULT_DOMAIN
from app.domain.positions import Position
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.wire.answers import (
    DeregisterAnswer,
    EntityHistory,
    EntityPage,
    EntityState,
    ForgetAnswer,
    LookupAnswer,
    OverduePage,
    StateCounts,
)
from pqs_client.connection import JSON, NDJSON, Caller, decode, read

Clock: TypeAlias = Literal["known", "occurred"]  # when the service stored a change, or when it happened
Order: TypeAlias = Literal["asc", "desc"]
T = TypeVar("T")

MAX_WAIT = 60.0  # seconds that one call waits at most


class Waited(Struct, frozen=True):
    """The row as it was when a wait was over. `reached` is the version that was in the state waited for."""

    row: Registration
    reached: int | None


class Entities:
    """Calls about entities. All but `deregister` are repeatable. Reads of a forgotten entity raise ForgottenError."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def get(
        self, entity_id: UUID, *, domain: str = DEFAULT_DOMAIN, known: Registration | None = None
    ) -> Registration:
        """The whole row. Raises NotFoundError.

        `known` is the row as it was read before. While its version is unchanged, the service answers 304 without a
        body, and `known` itself is returned.
        """
        headers = {} if known is None else {"If-None-Match": f'"{known.version}"'}
        path = f"/v1/entities/{entity_id}"
        response = await self._caller.call("GET", path, params={"domain": domain}, headers=headers)
        return known if known is not None and response.status_code == 304 else read(response, Registration)

    async def state(self, entity_id: UUID, *, domain: str = DEFAULT_DOMAIN) -> RegistrationState:
        """Only the state. Raises NotFoundError."""
        path = f"/v1/entities/{entity_id}/state"
        return (await self._caller.get(path, EntityState, {"domain": domain})).current_state

    async def state_at(
        self, entity_id: UUID, as_of: datetime, *, clock: Clock = "known", domain: str = DEFAULT_DOMAIN
    ) -> RegistrationState:
        """The state at a time: the one that the service gave (`known`), or the one that was true (`occurred`).

        Raises NotFoundError when there was no such entity, and GoneError when the change log does not go back so far.
        """
        path, params = f"/v1/entities/{entity_id}/state", {"domain": domain, "as_of": as_of, "clock": clock}
        return (await self._caller.get(path, EntityState, params)).current_state

    async def history(
        self,
        entity_id: UUID,
        *,
        domain: str = DEFAULT_DOMAIN,
        order: Order = "asc",
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[EntityHistory, None]:
        """One entity's changes, page by page, the oldest first or the newest, from `cursor` on.

        Raises NotFoundError for an unknown entity.
        """
        while True:
            params = {"domain": domain, "order": order, "limit": limit, "cursor": cursor}
            page = await self._caller.get(f"/v1/entities/{entity_id}/history", EntityHistory, params)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def wait(
        self,
        entity_id: UUID,
        seconds: float = 30.0,
        *,
        until: Iterable[RegistrationState] = (),
        after_version: int | None = None,
        min_sequence: int | None = None,
        min_offset: Iterable[str] = (),
        domain: str = DEFAULT_DOMAIN,
    ) -> Waited | None:
        """Wait up to `seconds`, MAX_WAIT at most, for all the conditions; without one, for a row.

        `until`: one of these states, also if the entity has left it since. `after_version`: a later version.
        `min_sequence`: a position. `min_offset`: `<topic>-<partition>:<offset>` of Kafka, each of them. None when the
        entity is still at `after_version`; raises LateError when another condition does not hold after the wait.
        """
        params = {
            "domain": domain,
            "wait": min(seconds, MAX_WAIT),
            "until": [str(each) for each in until],
            "after_version": after_version,
            "min_sequence": min_sequence,
            "min_offset": list(min_offset),
        }
        path = f"/v1/entities/{entity_id}"
        response = await self._caller.call("GET", path, params=params, silence=seconds)
        if response.status_code == 304:
            return None
        reached = response.headers.get("pqs-reached")
        return Waited(read(response, Registration), None if reached is None else int(reached))

    async def forget(
        self,
        entity_id: UUID,
        *,
        reason: str | None = None,
        erase: bool = False,
        permanent: bool = False,
        position: Position | None = None,
        known: Registration | int | None = None,
        domain: str = DEFAULT_DOMAIN,
    ) -> ForgetAnswer:
        """Turn the entity into a tombstone: from now on its reads raise ForgottenError.

        `erase` also empties its changes and removes its dead letters. `permanent`: no later event begins it anew.
        `position`: where there is no row yet, make a tombstone there, against events that still wait in Kafka.
        `known` is the row as it was read, or its version: raises PreconditionFailedError where that has changed.
        Raises NotFoundError without a row and a position.
        """
        asked = {"reason": reason, "erase": erase, "permanent": permanent, "position": position}
        return await self._act("forget", entity_id, domain, asked, known, ForgetAnswer, repeatable=known is None)

    async def deregister(
        self,
        entity_id: UUID,
        *,
        reason: str | None = None,
        known: Registration | int | None = None,
        domain: str = DEFAULT_DOMAIN,
    ) -> DeregisterAnswer:
        """Evict the node: end its registration, as its own `node.deregistered` would. Not repeatable.

        The outcome is `ignored`, with a reason, where there is no registration to end. `known` is the row as it was
        read: raises PreconditionFailedError where that has changed. Raises NotFoundError, and ForgottenError.
        """
        asked = {"reason": reason}
        return await self._act("deregister", entity_id, domain, asked, known, DeregisterAnswer, repeatable=False)

    async def _act(
        self,
        act: str,
        entity_id: UUID,
        domain: str,
        asked: Mapping[str, object],
        known: Registration | int | None,
        answer: type[T],
        *,
        repeatable: bool,
    ) -> T:
        """What an operator does to one entity."""
        version = known.version if isinstance(known, Registration) else known
        condition = {} if version is None else {"If-Match": f'"{version}"'}
        response = await self._caller.call(
            "POST",
            f"/v1/entities/{entity_id}/{act}",
            repeatable=repeatable,
            params={"domain": domain},
            headers={"Content-Type": JSON, **condition},
            content=msgspec.json.encode({name: value for name, value in asked.items() if value is not None}),
        )
        return read(response, answer)

    async def lookup(self, entity_ids: Iterable[UUID], *, domain: str = DEFAULT_DOMAIN) -> LookupAnswer:
        """The rows of up to 1,000 entities, in the order of the ids, and the ids without a row."""
        content = msgspec.json.encode({"entity_ids": list(entity_ids)})
        response = await self._caller.call(
            "POST",
            "/v1/entities/lookup",
            params={"domain": domain},
            headers={"Content-Type": JSON},
            content=content,
        )
        return read(response, LookupAnswer)

    async def counts(self, *, domain: str = DEFAULT_DOMAIN) -> StateCounts:
        """The number of entities in each state."""
        return await self._caller.get("/v1/state-counts", StateCounts, {"domain": domain})

    async def pages(
        self,
        *,
        domain: str = DEFAULT_DOMAIN,
        state: Iterable[RegistrationState] = (),
        node_type: str | None = None,
        capabilities: Mapping[str, object] | None = None,
        event_id: UUID | None = None,
        updated_before: datetime | None = None,
        updated_since: datetime | None = None,
        id_prefix: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[EntityPage, None]:
        """The entities that match all filters, page by page, in the order of entity ids, from `cursor` on.

        `capabilities` is a JSON object that their capabilities must contain, such as `{"gpu": True}`; `id_prefix` the
        beginning of their ids. A row that matches throughout comes exactly once, whatever is written meanwhile.
        """
        params = _filters(domain, state, node_type, capabilities, event_id, updated_before, updated_since, id_prefix)
        while True:
            given = {**params, "limit": limit, "cursor": cursor}
            page = await self._caller.get("/v1/entities", EntityPage, given)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def stream(
        self,
        *,
        domain: str = DEFAULT_DOMAIN,
        state: Iterable[RegistrationState] = (),
        node_type: str | None = None,
        capabilities: Mapping[str, object] | None = None,
        event_id: UUID | None = None,
        updated_before: datetime | None = None,
        updated_since: datetime | None = None,
        id_prefix: str | None = None,
    ) -> AsyncGenerator[Registration, None]:
        """The entities that match all filters, one by one, from one long answer: the fastest way to read many.

        It needs constant memory. Raises ConnectionFailedError if the answer breaks off; it never ends early silently.
        To leave the loop early, close it (`contextlib.aclosing`): until then it holds a connection.
        """
        params = _filters(domain, state, node_type, capabilities, event_id, updated_before, updated_since, id_prefix)
        headers = {"Accept": NDJSON}
        async with self._caller.stream("GET", "/v1/entities", params=params, headers=headers) as lines:
            async for line in lines:
                yield decode(line, Registration)


class OverdueScans:
    """Scans for passed deadlines whose timeout event was not emitted, oldest first. Repeatable.

    `as_of` is the time to compare with, by default the database's clock; the first page fixes it for all pages.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def ack(
        self,
        *,
        domain: str = DEFAULT_DOMAIN,
        as_of: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[OverduePage, None]:
        """Nodes that did not acknowledge in time, page by page, from `cursor` on."""
        return self._scan("/v1/overdue/ack", domain, as_of, limit, cursor)

    def liveness(
        self,
        *,
        domain: str = DEFAULT_DOMAIN,
        as_of: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[OverduePage, None]:
        """Nodes whose heartbeat did not arrive in time, page by page, from `cursor` on."""
        return self._scan("/v1/overdue/liveness", domain, as_of, limit, cursor)

    async def _scan(
        self, path: str, domain: str, as_of: datetime | None, limit: int | None, cursor: str | None
    ) -> AsyncGenerator[OverduePage, None]:
        while True:
            # A cursor contains the time.
            moment = as_of if cursor is None else None
            params = {"domain": domain, "as_of": moment, "limit": limit, "cursor": cursor}
            page = await self._caller.get(path, OverduePage, params)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return


def _filters(
    domain: str,
    state: Iterable[RegistrationState],
    node_type: str | None,
    capabilities: Mapping[str, object] | None,
    event_id: UUID | None,
    updated_before: datetime | None,
    updated_since: datetime | None,
    id_prefix: str | None,
) -> dict[str, object]:
    return {
        "domain": domain,
        "state": [str(each) for each in state],
        "node_type": node_type,
        "capabilities": None if capabilities is None else msgspec.json.encode(capabilities).decode(),
        "event_id": event_id,
        "updated_before": updated_before,
        "updated_since": updated_since,
        "id_prefix": id_prefix,
    }
