"""`pqs get`, `pqs list`, `pqs counts` and `pqs history`: entities, one, many, by state, and as they were."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import click

from app.cli.output import Column, View, compact
from app.cli.service import Service, asking, in_domain, limited, printing
from app.cli.terminal import DIM, GREEN, RED, YELLOW
from app.cli.values import json_object, moment
from app.domain.states import RegistrationState

if TYPE_CHECKING:
    from app.wire.answers import ChangeItem, EntityHistory, EntityPage
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


@click.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="A state; may be repeated.")
@click.option("--type", "node_type", metavar="NAME", help="The type of the nodes.")
@click.option(
    "--capabilities", type=json_object, metavar="JSON", help='What their capabilities contain, such as {"gpu": true}.'
)
@click.option("--event", "event_id", metavar="ID", type=click.UUID, help="The event that was applied last.")
@click.option("--updated-before", type=moment, metavar="TIME", help="Entities that were not updated since this time.")
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
