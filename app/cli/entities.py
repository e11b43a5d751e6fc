"""`pqs get`, `wait`, `list`, `counts`, `domains` and `history`: entities, one, many, by state, and as they were."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import click

from app.cli.output import Column, View, compact
from app.cli.service import Service, asking, in_domain, limited, printing
from app.cli.statuses import TIMED_OUT
from app.cli.terminal import DIM, GREEN, RED, YELLOW
from app.cli.values import json_object, moment
from app.domain.states import RegistrationState

if TYPE_CHECKING:
    from app.wire.answers import ChangeItem, EntityHistory, EntityPage, StateCounts
    from app.wire.overview import DomainPage
    from pqs_client import Client, Registration

STATES = [str(state) for state in RegistrationState]


def colour_of(state: RegistrationState | None) -> str:
    """The colour of a state: ended, waiting, active."""
    if state is None:
        return ""
    if state.is_active():
        return GREEN
    if state.is_terminal():
        return DIM
    return RED if state.can_retry() else YELLOW


def _entity_view() -> "View[Registration]":
    return View(
        [
            Column("id", lambda row: row.entity_id),
            Column("domain", lambda row: row.domain, wide=True),
            Column("state", lambda row: row.current_state, lambda row: colour_of(row.current_state)),
            Column("type", lambda row: row.node_type),
            Column("node version", lambda row: row.node_version, wide=True),
            Column("ack deadline", lambda row: row.ack_deadline),
            Column("liveness deadline", lambda row: row.liveness_deadline),
            Column("last heartbeat", lambda row: row.last_heartbeat_at, wide=True),
            Column("ack timeout sent", lambda row: row.ack_timeout_emitted_at, wide=True),
            Column("liveness timeout sent", lambda row: row.liveness_timeout_emitted_at, wide=True),
            Column("registered", lambda row: row.registered_at, wide=True),
            Column("updated", lambda row: row.updated_at),
            Column("version", lambda row: row.version),
            Column("position", lambda row: row.position, wide=True),
            Column("last event", lambda row: row.last_applied_event_id, wide=True),
            Column("correlation", lambda row: row.correlation_id, wide=True),
            Column("capabilities", lambda row: compact(row.capabilities), wide=True),
        ],
        name=lambda row: row.entity_id,
    )


def _history_view() -> "View[ChangeItem]":
    return View(
        [
            Column("version", lambda change: change.version),
            Column("event", lambda change: change.type),
            Column("outcome", lambda change: change.outcome),
            Column("before", lambda change: change.before),
            Column("state", lambda change: change.current_state, lambda change: colour_of(change.current_state)),
            Column("occurred", lambda change: change.occurred_at),
            Column("stored", lambda change: change.changed_at, wide=True),
            Column("position", lambda change: change.stands_at, wide=True),
            Column("event id", lambda change: change.event_id, wide=True),
            Column("correlation", lambda change: change.correlation_id, wide=True),
            Column("reason", lambda change: change.reason),
        ],
        name=lambda change: change.event_id or "-",
    )


@click.command()
@click.argument("entity_id", metavar="ID", type=click.UUID)
@in_domain
@printing
@asking
def get(service: Service, entity_id: UUID, domain: str) -> None:
    """Print an entity: its state, deadlines and position."""

    async def work(client: "Client") -> None:
        row = await client.entities.get(entity_id, domain=domain)
        service.printer.one(row, service.body, _entity_view())

    service.run(work)


@click.command()
@click.argument("entity_id", metavar="ID", type=click.UUID)
@click.option(
    "--for", "states", multiple=True, type=click.Choice(STATES), help="A state to wait for; may be repeated."
)
@click.option("--after-version", metavar="N", type=click.IntRange(0), help="Wait for a later version than this one.")
@click.option("--min-sequence", metavar="N", type=click.IntRange(0), help="Wait until this sequence is applied.")
@click.option(
    "--min-offset",
    "min_offsets",
    metavar="TOPIC-PARTITION:OFFSET",
    multiple=True,
    help="Wait until this offset of Kafka is applied; may be repeated.",
)
@in_domain
@printing
@asking
def wait(
    service: Service,
    entity_id: UUID,
    states: Sequence[str],
    after_version: int | None,
    min_sequence: int | None,
    min_offsets: Sequence[str],
    domain: str,
) -> None:
    """Wait until an entity meets all the conditions, and print it.

    Without a condition, wait until there is such an entity. A state that it passes through meanwhile, or since
    --after-version, counts, too. The status is 6 when --timeout passes before.
    """

    async def work(client: "Client") -> int | None:
        from time import monotonic  # noqa: PLC0415 - help does without it

        from pqs_client import LateError  # noqa: PLC0415 - help does without it

        end = monotonic() + service.timeout
        seen = after_version  # one call waits a minute at most: the next one must not miss what passes between them
        while True:
            left = end - monotonic()
            try:
                found = await client.entities.wait(
                    entity_id,
                    max(left, 0),
                    until=[RegistrationState(state) for state in states],
                    after_version=seen,
                    min_sequence=min_sequence,
                    min_offset=min_offsets,
                    domain=domain,
                )
            except LateError as error:
                if monotonic() >= end:
                    raise
                if seen is None and states and error.current is not None:
                    seen = error.current.version
                continue
            if found is not None:
                break
            if monotonic() >= end:
                click.echo(f"pqs: the entity is still at version {seen}", err=True)
                return TIMED_OUT
        service.printer.one(found.row, service.body, _entity_view())
        if found.reached not in {None, found.row.version}:
            service.printer.note(f"it was in that state at version {found.reached}")
        return None

    service.run(work)


@click.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="A state; may be repeated.")
@click.option("--type", "node_type", metavar="NAME", help="The type of the nodes.")
@click.option(
    "--capabilities", type=json_object, metavar="JSON", help='What their capabilities contain, such as {"gpu": true}.'
)
@click.option("--event", "event_id", metavar="ID", type=click.UUID, help="The event that was applied last.")
@click.option("--updated-before", type=moment, metavar="TIME", help="Entities that were not updated since this time.")
@click.option("--updated-since", type=moment, metavar="TIME", help="Entities that were updated then or later.")
@click.option("--id-prefix", metavar="TEXT", help="The beginning of their ids.")
@in_domain
@limited
@printing
@asking
def list_entities(
    service: Service,
    states: Sequence[str],
    node_type: str | None,
    capabilities: dict[str, object] | None,
    event_id: UUID | None,
    updated_before: datetime | None,
    updated_since: datetime | None,
    id_prefix: str | None,
    domain: str,
    limit: int | None,
) -> None:
    """List the entities that match all filters, by id."""

    async def work(client: "Client") -> None:
        def pages(size: int, cursor: str | None) -> "AsyncGenerator[EntityPage, None]":
            return client.entities.pages(
                domain=domain,
                state=[RegistrationState(state) for state in states],
                node_type=node_type,
                capabilities=capabilities,
                event_id=event_id,
                updated_before=updated_before,
                updated_since=updated_since,
                id_prefix=id_prefix,
                limit=size,
                cursor=cursor,
            )

        await service.pages(pages, _entity_view(), limit)

    service.run(work)


@click.command()
@in_domain
@printing
@asking
def counts(service: Service, domain: str) -> None:
    """Print the number of entities in each state."""
    view: View[tuple[RegistrationState | None, int]] = View(
        [
            Column("state", lambda row: row[0] or "total", lambda row: colour_of(row[0])),
            Column("entities", lambda row: row[1]),
        ],
        name=lambda row: row[0] or "total",
    )

    async def work(client: "Client") -> None:
        found = await client.entities.counts(domain=domain)
        if service.printer.is_json:
            service.printer.body(service.body)
        else:
            service.printer.page([*found.counts.items(), (None, found.total)], service.body, view)

    service.run(work)


def _state_column(state: RegistrationState) -> "Column[StateCounts]":
    """The number of entities in a state."""
    return Column(state.replace("_", " "), lambda row: row.counts[state], wide=not state.is_active())


@click.command()
@limited
@printing
@asking
def domains(service: Service, limit: int | None) -> None:
    """List the domains, with their numbers of entities in each state."""
    view: View[StateCounts] = View(
        [
            Column("domain", lambda row: row.domain),
            Column("entities", lambda row: row.total),
            *map(_state_column, RegistrationState),
        ],
        name=lambda row: row.domain,
    )

    async def work(client: "Client") -> None:
        def pages(size: int, cursor: str | None) -> "AsyncGenerator[DomainPage, None]":
            return client.domains(limit=size, cursor=cursor)

        await service.pages(pages, view, limit)

    service.run(work)


@click.command()
@click.argument("entity_id", metavar="ID", type=click.UUID)
@click.option("--newest-first", is_flag=True, help="Print the newest change first.")
@in_domain
@limited
@printing
@asking
def history(service: Service, entity_id: UUID, newest_first: bool, domain: str, limit: int | None) -> None:
    """Print the changes of an entity, oldest first."""

    async def work(client: "Client") -> None:
        complete = True

        async def pages(size: int, cursor: str | None) -> "AsyncGenerator[EntityHistory, None]":
            nonlocal complete
            order: Literal["asc", "desc"] = "desc" if newest_first else "asc"
            async for page in client.entities.history(
                entity_id, domain=domain, order=order, limit=size, cursor=cursor
            ):
                complete = page.complete
                yield page

        await service.pages(pages, _history_view(), limit)
        if not complete:
            service.printer.note("older changes are not kept any more")

    service.run(work)
