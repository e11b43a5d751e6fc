"""`pqs dead-letters entities`: entities whose messages wait behind a dead letter."""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import click

from app.cli.output import Column, View
from app.cli.service import Service, asking, limited, printing

if TYPE_CHECKING:
    from pqs_client import Client, HeldEntity, HeldPage, QueueAnswer


def _view() -> "View[HeldEntity]":
    return View(
        [
            Column("id", lambda entity: entity.entity_id),
            Column("letter", lambda entity: entity.letter_id),
            Column("held", lambda entity: entity.held_at),
            Column("waiting", lambda entity: entity.messages),
            Column("passed", lambda entity: entity.passed),
            Column("topic", lambda entity: entity.topic, wide=True),
            Column("partition", lambda entity: entity.partition, wide=True),
            Column("offset", lambda entity: entity.offset, wide=True),
            Column("error", lambda entity: entity.error),
        ],
        name=lambda entity: entity.entity_id,
    )


@click.group()
def entities() -> None:
    """List, show, retry and skip entities whose messages wait behind a dead letter."""


@entities.command("list")
@limited
@printing
@asking
def list_entities(service: Service, limit: int | None) -> None:
    """List the entities that are held, by id."""

    async def work(client: "Client") -> None:
        def pages(size: int, cursor: str | None) -> "AsyncGenerator[HeldPage, None]":
            return client.dead_letters.held_pages(limit=size, cursor=cursor)

        await service.pages(pages, _view(), limit)

    service.run(work)


@entities.command()
@click.argument("entity_id", metavar="ID", type=click.UUID)
@printing
@asking
def show(service: Service, entity_id: UUID) -> None:
    """Print why an entity is held, and how many messages wait."""

    async def work(client: "Client") -> None:
        service.printer.one(await client.dead_letters.held(entity_id), service.body, _view())

    service.run(work)


@entities.command()
@click.argument("ids", metavar="ID...", type=click.UUID, nargs=-1, required=True)
@asking
def retry(service: Service, ids: Sequence[UUID]) -> None:
    """Apply an entity's dead letter and the messages behind it, in order, in one transaction.

    It prints a line for each id. Where a message fails again, nothing of that entity is written. The status is that
    of the first one that failed.
    """

    async def one(client: "Client", id_: UUID) -> str:
        return _told(await client.dead_letters.retry_held(id_))

    service.each(ids, one)


@entities.command()
@click.argument("ids", metavar="ID...", type=click.UUID, nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@asking
def skip(service: Service, ids: Sequence[UUID], yes: bool) -> None:
    """Do as a retry does, but leave out the first message that fails again, for good. It asks first.

    If another one fails behind it, the rest waits behind that one. It prints a line for each id.
    """
    if not yes and not service.curl:
        click.confirm(f"Remove a message of {len(ids)} for good?", abort=True, err=True)

    async def one(client: "Client", id_: UUID) -> str:
        return _told(await client.dead_letters.skip_held(id_))

    service.each(ids, one)


def _told(answer: "QueueAnswer") -> str:
    """What became of a queue, for people."""
    summary, left_out = answer.summary, answer.skipped
    counts = {name: getattr(summary, name) for name in summary.__struct_fields__ if name != "received"}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    if left_out is not None:
        parts.append(f"left out {left_out.topic}-{left_out.partition} offset {left_out.offset}")
    if answer.messages:
        parts.append(f"{answer.messages} still wait")
    return ", ".join(parts) or "nothing to apply"
