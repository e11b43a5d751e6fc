"""`pqs watermarks`: how far each partition of Kafka is in the projection."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from app.cli.output import Column, View, span
from app.cli.service import Service, asking, printing

if TYPE_CHECKING:
    from pqs_client import Client, Watermark


def age(time: datetime | None) -> str | None:
    """How long ago it was, for people."""
    return None if time is None else span((datetime.now(UTC) - time).total_seconds())


def _view() -> "View[Watermark]":
    return View(
        [
            Column("topic", lambda mark: mark.topic),
            Column("partition", lambda mark: mark.partition),
            Column("offset", lambda mark: mark.offset),
            Column("behind", lambda mark: age(mark.as_of)),
            Column("as of", lambda mark: mark.as_of),
            Column("last message", lambda mark: mark.message_at, wide=True),
            Column("caught up", lambda mark: mark.caught_up_at, wide=True),
            Column("stored", lambda mark: mark.updated_at, wide=True),
            Column("consumer", lambda mark: mark.consumer),
        ],
        name=lambda mark: f"{mark.topic}-{mark.partition}",
    )


@click.command()
@printing
@asking
def watermarks(service: Service) -> None:
    """List the progress in each partition of Kafka: everything up to the offset is applied or a dead letter."""

    async def work(client: "Client") -> None:
        service.printer.page(await client.watermarks(), service.body, _view())

    service.run(work)
