"""`pqs dead-letters`: messages that could not be applied or sent."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

import click

from app.cli.held import entities
from app.cli.output import Column, View
from app.cli.service import Service, asking, limited, printing
from app.cli.statuses import FAILED
from app.cli.values import moment

if TYPE_CHECKING:
    from pqs_client import Client, DeadLetterPage, DeadMessage, LetterFilter, LetterRun

P = ParamSpec("P")

LETTER_ID = click.IntRange(1, 2**63 - 1)
FIRST_LOOK, LAST_LOOK = 0.1, 2.0  # seconds between two looks at a bulk call; the time grows


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


class Filters(NamedTuple):
    """The filters that are given, by the names of the client."""

    given: dict[str, object]

    def filter(self) -> "LetterFilter":
        """The client's filter."""
        import msgspec  # noqa: PLC0415 - help does without it

        from pqs_client import LetterFilter  # noqa: PLC0415 - as above

        return msgspec.convert(self.given, LetterFilter)


def _filtered(command: Callable[P, None]) -> Callable[P, None]:
    """The filters of dead letters. The command gets them as `wanted`."""

    @click.option("--source", type=click.Choice(["consumer", "relay"]), help="Incoming or outgoing messages.")
    @click.option("--topic", metavar="NAME", help="Messages of this topic.")
    @click.option("--error", metavar="TEXT", help="Messages with this text in their error.")
    @click.option("--entity", "entity_id", metavar="ID", type=click.UUID, help="Messages about this entity.")
    @click.option("--since", metavar="TIME", type=moment, help="Dead letters from this time on.")
    @wraps(command)
    def with_filters(*args: P.args, **kwargs: P.kwargs) -> None:
        given = {name: kwargs.pop(name) for name in ("source", "topic", "error", "entity_id", "since")}
        kwargs["wanted"] = Filters({name: value for name, value in given.items() if value is not None})
        command(*args, **kwargs)

    return with_filters


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, retry and delete messages that could not be applied or sent."""


dead_letters.add_command(entities)


@dead_letters.command("list")
@_filtered
@click.option("--newest-first", is_flag=True, help="Begin with the newest one.")
@limited
@printing
@asking
def list_letters(service: Service, wanted: Filters, newest_first: bool, limit: int | None) -> None:
    """List the dead letters that match all filters, oldest first."""

    async def work(client: "Client") -> None:
        def pages(size: int, cursor: str | None) -> "AsyncGenerator[DeadLetterPage, None]":
            return client.dead_letters.pages(wanted.filter(), newest_first=newest_first, limit=size, cursor=cursor)

        await service.pages(pages, _view(), limit)

    service.run(work)


@dead_letters.command()
@click.argument("id_", metavar="ID", type=LETTER_ID)
@printing
@asking
def show(service: Service, id_: int) -> None:
    """Print a dead letter with its message."""

    async def work(client: "Client") -> None:
        letter = await client.dead_letters.get(id_)
        service.printer.one(letter, service.body, _whole_view())

    service.run(work)


def _choosing(command: Callable[P, None]) -> Callable[P, None]:
    """The letters that a command is about: by their ids, or all that match. Raises UsageError for both or none."""

    @click.argument("ids", metavar="[ID]...", type=LETTER_ID, nargs=-1)
    @click.option("--all", "everything", is_flag=True, help="All dead letters that match the filters.")
    @_filtered
    @wraps(command)
    def with_choice(*args: P.args, **kwargs: P.kwargs) -> None:
        ids, wanted, everything = kwargs["ids"], kwargs["wanted"], kwargs.pop("everything")
        assert isinstance(wanted, Filters)  # noqa: S101 - made above
        if wanted.given and not everything:
            raise click.UsageError("filters choose letters together with --all")
        if bool(ids) == bool(everything):
            raise click.UsageError("name ids, or --all")
        command(*args, **kwargs)

    return with_choice


@dead_letters.command()
@_choosing
@asking
def retry(service: Service, ids: Sequence[int], wanted: Filters) -> None:
    """Apply messages at their own positions, and remove their dead letters.

    It prints a line for each id. The status is that of the first one that failed; its dead letter stays. A message of
    the relay goes to the outbox again. With --all the service retries all that match, each with the messages that
    wait behind it, and one line has the numbers at the end; the status is 1 if any failed.
    """

    async def one(client: "Client", id_: int) -> str:
        result = await client.dead_letters.retry(id_)
        if result is None:
            return "sent to the outbox again"
        return str(result.outcome) + (f": {result.reason}" if result.reason else "")

    if ids:
        service.each(ids, one)
    else:
        _in_bulk(service, lambda client: client.dead_letters.retry_all(wanted.filter()))


@dead_letters.command()
@_choosing
@click.option("--yes", is_flag=True, help="Do not ask.")
@asking
def delete(service: Service, ids: Sequence[int], wanted: Filters, yes: bool) -> None:
    """Remove messages for good. It asks first.

    It prints a line for each id. The status is that of the first one that failed. With --all the service removes all
    that match, and one line has the numbers at the end. A letter that other messages wait behind stays.
    """
    if not yes and not service.curl:
        number = str(len(ids)) if ids else "all that match" if wanted.given else "all dead letters"
        click.confirm(f"Remove {number} for good?", abort=True, err=True)

    async def one(client: "Client", id_: int) -> str:
        await client.dead_letters.delete(id_)
        return "deleted"

    if ids:
        service.each(ids, one)
    else:
        _in_bulk(service, lambda client: client.dead_letters.delete_all(wanted.filter()))


def _in_bulk(service: Service, begin: "Callable[[Client], Awaitable[LetterRun]]") -> None:
    """Begin a bulk call, wait for its end, and print its numbers."""

    async def work(client: "Client") -> int | None:
        import asyncio  # noqa: PLC0415 - help does without it

        run = await begin(client)
        service.printer.note(f"{run.matched} match; the service goes on even if this command ends")
        wait = FIRST_LOOK
        while run.finished_at is None:
            await asyncio.sleep(wait)
            wait = min(2 * wait, LAST_LOOK)
            run = await client.dead_letters.run(run.id)
        click.echo(f"{run.done} done, {run.failed} failed")
        return FAILED if run.failed else None

    service.run(work)
