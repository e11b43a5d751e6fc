"""`pqs overdue`: the nodes that missed a deadline."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from app.cli.entities import colour_of
from app.cli.output import Column, View, span
from app.cli.service import Service, asking, in_domain, limited, printing
from app.cli.terminal import RED
from app.cli.values import moment

if TYPE_CHECKING:
    from pqs_client import Client, OverduePage, OverdueRegistration

ACK, LIVENESS = KINDS = ("ack", "liveness")


def _view(kind: str) -> "View[OverdueRegistration]":
    def deadline(row: "OverdueRegistration") -> datetime | None:
        return row.ack_deadline if kind == ACK else row.liveness_deadline

    return View(
        [
            Column("id", lambda row: row.entity_id),
            Column("domain", lambda row: row.domain, wide=True),
            Column("overdue", lambda row: span(row.overdue_seconds), lambda row: RED),
            Column("seconds", lambda row: row.overdue_seconds, wide=True),
            Column("deadline", deadline),
            Column("state", lambda row: row.current_state, lambda row: colour_of(row.current_state)),
            Column("type", lambda row: row.node_type),
            Column("last heartbeat", lambda row: row.last_heartbeat_at, wide=True),
            Column("version", lambda row: row.version, wide=True),
        ],
        name=lambda row: row.entity_id,
    )


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option(
    "--as-of", type=moment, metavar="TIME", help="The time to compare with; without it, the database's clock."
)
@in_domain
@limited
@printing
@asking
def overdue(service: Service, kind: str, as_of: datetime | None, domain: str, limit: int | None) -> None:
    """List the nodes that missed a deadline, longest overdue first.

    `ack`: they did not acknowledge in time. `liveness`: their heartbeat did not arrive in time. Only nodes whose
    timeout event was not emitted yet are listed. Without a sweep, nothing emits such events.
    """

    async def work(client: "Client") -> None:
        next_deadline: datetime | None = None

        async def pages(size: int, cursor: str | None) -> "AsyncGenerator[OverduePage, None]":
            nonlocal next_deadline
            scan = client.overdue.ack if kind == ACK else client.overdue.liveness
            async for page in scan(domain=domain, as_of=as_of, limit=size, cursor=cursor):
                next_deadline = page.next_deadline
                yield page

        await service.pages(pages, _view(kind), limit)
        if next_deadline is not None:
            seconds = (next_deadline - (as_of or datetime.now(UTC))).total_seconds()
            service.printer.note(f"the next deadline passes in {span(max(seconds, 0))}")

    service.run(work)
