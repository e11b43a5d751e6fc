"""`pqs forget`: what an operator does to one entity."""

from typing import TYPE_CHECKING
from uuid import UUID

import click

from app.cli.output import Column, View
from app.cli.service import Service, asking, in_domain, printing

if TYPE_CHECKING:
    from pqs_client import Client, ForgetAnswer, Position


def _view() -> "View[ForgetAnswer]":
    return View(
        [
            Column("id", lambda answer: answer.entity_id),
            Column("domain", lambda answer: answer.domain, wide=True),
            Column("forgotten", lambda answer: answer.forgotten_at),
            Column("permanent", lambda answer: "yes" if answer.permanent else "no"),
            Column("version", lambda answer: answer.version),
            Column("position", lambda answer: answer.stands_at),
            Column("erased changes", lambda answer: answer.erased and answer.erased.changes),
            Column("erased dead letters", lambda answer: answer.erased and answer.erased.dead_letters),
            Column("erased messages", lambda answer: answer.erased and answer.erased.messages),
        ],
        name=lambda answer: answer.entity_id,
    )


@click.command()
@click.argument("entity_id", metavar="ID", type=click.UUID)
@click.option("--reason", metavar="TEXT", help="Why, for the audit log.")
@click.option("--erase", is_flag=True, help="Also empty its changes, and remove its dead letters and messages.")
@click.option("--permanent", is_flag=True, help="No event begins a registration of it anew.")
@click.option("--sequence", type=click.IntRange(0), help="Without a row, a tombstone at this sequence.")
@click.option("--partition", metavar="NAME", help="Without a row, a tombstone at an offset of this partition.")
@click.option("--offset", type=click.IntRange(0), help="The offset in that partition.")
@click.option("--if-version", type=click.IntRange(1), help="Only if the entity is at this version.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@in_domain
@printing
@asking
def forget(
    service: Service,
    entity_id: UUID,
    reason: str | None,
    erase: bool,
    permanent: bool,
    sequence: int | None,
    partition: str | None,
    offset: int | None,
    if_version: int | None,
    yes: bool,
    domain: str,
) -> None:
    """Forget an entity: nothing of it is told from then on, and late events do not bring it back.

    It asks first. An event that begins a registration later begins the entity anew, except after --permanent.
    """
    if (partition is None) != (offset is None) or (partition is not None and sequence is not None):
        raise click.UsageError("give either --sequence, or --partition and --offset, or none of them")
    if not yes and not service.curl:
        click.confirm(f"Forget {entity_id} in domain {domain}?", abort=True, err=True)

    async def work(client: "Client") -> None:
        answer = await client.entities.forget(
            entity_id,
            reason=reason,
            erase=erase,
            permanent=permanent,
            position=_position(sequence, partition, offset),
            known=if_version,
            domain=domain,
        )
        service.printer.one(answer, service.body, _view())

    service.run(work)


def _position(sequence: int | None, partition: str | None, offset: int | None) -> "Position | None":
    from pqs_client import Position  # noqa: PLC0415 - help does without it

    if sequence is None and partition is None:
        return None
    return Position(sequence=sequence, partition=partition, offset=offset)
