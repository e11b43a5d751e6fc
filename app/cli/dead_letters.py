"""`pqs dead-letters`: messages that could not be applied or sent."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import click

from app.cli.output import Column, View, items_in
from app.cli.service import LARGEST_PAGE, Service, asking, limited, printing
from app.cli.statuses import NOT_FOUND
from app.cli.terminal import plain

if TYPE_CHECKING:
    from pqs_client import Client, DeadLetterPage, DeadMessage

LETTER_ID = click.IntRange(1, 2**63 - 1)


def _view() -> "View[DeadMessage]":
    return View(
        [
            Column("id", lambda letter: letter.id),
            Column("source", lambda letter: letter.source),
            Column("topic", lambda letter: letter.topic),
            Column("partition", lambda letter: letter.partition),
            Column("offset", lambda letter: letter.offset),
            Column("created", lambda letter: letter.created_at),
            Column("key", lambda letter: letter.key or letter.key_base64, wide=True),
            Column("error", lambda letter: letter.error),
        ],
        name=lambda letter: letter.id,
    )


def _whole_view() -> "View[DeadMessage]":
    [*columns, error] = _view().columns
    more: list[Column[DeadMessage]] = [
        Column(
            "headers",
            lambda letter: ", ".join(f"{each.name}={each.value or each.value_base64}" for each in letter.headers),
        ),
        Column("value", lambda letter: letter.value or letter.value_base64),
    ]
    return View([*(column._replace(wide=False) for column in columns), error, *more], name=lambda letter: letter.id)


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, retry and delete messages that could not be applied or sent."""


@dead_letters.command("list")
@limited
@printing
@asking
def list_letters(service: Service, limit: int | None) -> None:
    """List the dead letters, oldest first."""

    async def work(client: "Client") -> None:
        def pages(size: int, cursor: str | None) -> "AsyncGenerator[DeadLetterPage, None]":
            return client.dead_letters.pages(limit=size, cursor=cursor)

        await service.pages(pages, _view(), limit)

    service.run(work)


@dead_letters.command()
@click.argument("id_", metavar="ID", type=LETTER_ID)
@printing
@asking
def show(service: Service, id_: int) -> None:
    """Print a dead letter with its message.

    The service has no call for one dead letter: this reads the list up to it.
    """

    async def work(client: "Client") -> int | None:
        async for page in client.dead_letters.pages(limit=LARGEST_PAGE):
            for letter, body in zip(page.items, items_in(service.body), strict=True):
                if letter.id == id_:
                    service.printer.one(letter, body, _whole_view())
                    return None
        click.echo(f"pqs: there is no dead letter {id_}", err=True)
        return NOT_FOUND

    service.run(work)


@dead_letters.command()
@click.argument("ids", metavar="ID...", type=LETTER_ID, nargs=-1, required=True)
@asking
def retry(service: Service, ids: Sequence[int]) -> None:
    """Apply messages at their own positions, and remove their dead letters.

    It prints a line for each id. The status is that of the first one that failed; its dead letter stays. A message of
    the relay goes to the outbox again.
    """

    async def one(client: "Client", id_: int) -> str:
        result = await client.dead_letters.retry(id_)
        if result is None:
            return "sent to the outbox again"
        return str(result.outcome) + (f": {result.reason}" if result.reason else "")

    _each(service, ids, one)


@dead_letters.command()
@click.argument("ids", metavar="ID...", type=LETTER_ID, nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@asking
def delete(service: Service, ids: Sequence[int], yes: bool) -> None:
    """Remove messages for good. It asks first.

    It prints a line for each id. The status is that of the first one that failed.
    """
    if not yes and not service.curl:
        click.confirm(f"Remove {len(ids)} for good?", abort=True, err=True)

    async def one(client: "Client", id_: int) -> str:
        await client.dead_letters.delete(id_)
        return "deleted"

    _each(service, ids, one)


def _each(service: Service, ids: Sequence[int], do: "Callable[[Client, int], Awaitable[str]]") -> None:
    """Do something to each letter, and print the result; go on after one that fails."""

    async def work(client: "Client") -> int:
        from app.cli.curl import NotMadeError  # noqa: PLC0415 - as the client
        from app.cli.failures import status_of  # noqa: PLC0415 - as the client
        from pqs_client import ProblemError  # noqa: PLC0415 - help does without it

        status = 0
        for id_ in ids:
            try:
                click.echo(f"{id_}  {plain(await do(client, id_))}")
            except NotMadeError:  # printed; the next one is, too
                pass
            except ProblemError as error:
                click.echo(f"{id_}  {plain(str(error))}", err=True)
                status = status or status_of(error)
        return status

    service.run(work)
