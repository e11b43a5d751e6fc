"""The service that a command asks: where it is, how it is called, and how a failure ends the command.

Only a call imports the client and asyncio, so help and completion do without them.
"""

import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import click

from app.cli.output import FORMATS, Printer, View
from app.cli.terminal import plain

if TYPE_CHECKING:
    from pqs_client import Client

URL = "PQS_URL"
ADDRESS = "http://127.0.0.1:8000"
TIMEOUT = 30.0  # seconds
CONNECT_TIMEOUT = 5.0  # seconds
ATTEMPTS = 4
LARGEST_PAGE = 1000  # items: the most that a page has

P = ParamSpec("P")
T = TypeVar("T")


class Paged(Protocol[T]):
    """A page of any call that has pages."""

    @property
    def items(self) -> list[T]:
        """Its items."""

    @property
    def next_cursor(self) -> str | None:
        """Where the next page begins."""


class Service:
    """The service, and the printer of its answers."""

    def __init__(
        self, url: str, *, token_file: str | None, timeout: float, output: str = "table", curl: bool = False
    ) -> None:
        self.url = url
        self.printer = Printer(output)
        self.body = b""  # of the last answer, or the last line of a stream
        self._token_file = token_file
        self.timeout = timeout
        self.curl = curl

    def run(self, work: "Callable[[Client], Awaitable[int | None]]") -> None:
        """Do the work, with a client. Ends the process with the work's status, or as a failure says."""
        import asyncio  # noqa: PLC0415 - help does without it

        try:
            status = asyncio.run(self._run(work))
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 0
        if status:
            sys.exit(status)

    async def _run(self, work: "Callable[[Client], Awaitable[int | None]]") -> int | None:
        import httpx  # noqa: PLC0415 - as the client

        from app.cli.curl import Curl, NotMadeError  # noqa: PLC0415 - as the client
        from app.cli.failures import status_of, told  # noqa: PLC0415 - as the client
        from pqs_client import Client, ClientError, Retry  # noqa: PLC0415 - help does without it

        try:
            client = Client(
                self.url,
                timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, CONNECT_TIMEOUT)),
                retry=Retry(attempts=ATTEMPTS, total=self.timeout),
                token_file=self._token_file,
                transport=Curl(self._token_file) if self.curl else None,
                on_body=self._keep,
            )
        except (ValueError, OSError, httpx.InvalidURL) as error:
            raise click.UsageError(str(error)) from None
        async with client:
            try:
                return await work(client)
            except NotMadeError:
                return None
            except ClientError as error:
                for line in told(error):
                    click.echo(line, err=True)
                return status_of(error)

    async def pages(
        self, get: Callable[[int, str | None], AsyncGenerator[Paged[T], None]], view: View[T], limit: int | None
    ) -> None:
        """Print the pages to the end, or `limit` items. `get` gives the pages of this size from a cursor on."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            async with aclosing(get(LARGEST_PAGE if left is None else min(left, LARGEST_PAGE), cursor)) as following:
                page = await anext(following)
            self.printer.page(page.items, self.body, view)
            cursor = page.next_cursor
            if cursor is None:
                return
            left = None if left is None else left - len(page.items)
        self.printer.note("there are more; a higher --limit shows them")

    def each(self, names: Sequence[T], do: "Callable[[Client, T], Awaitable[str]]") -> None:
        """Do something to each of these, and print the result; go on after one that fails.

        The status is that of the first one that failed.
        """

        async def work(client: "Client") -> int:
            from app.cli.curl import NotMadeError  # noqa: PLC0415 - as the client
            from app.cli.failures import status_of  # noqa: PLC0415 - as the client
            from pqs_client import ProblemError  # noqa: PLC0415 - help does without it

            status = 0
            for name in names:
                try:
                    click.echo(f"{name}  {plain(await do(client, name))}")
                except NotMadeError:  # printed; the next one is, too
                    pass
                except ProblemError as error:
                    click.echo(f"{name}  {plain(str(error))}", err=True)
                    status = status or status_of(error)
            return status

        self.run(work)

    def _keep(self, body: bytes) -> None:
        self.body = body


@asynccontextmanager
async def while_read() -> AsyncIterator[None]:
    """Raise BrokenPipeError as soon as nobody reads standard output any more, also while nothing is printed."""
    import asyncio  # noqa: PLC0415 - help does without it

    loop, task, output = asyncio.get_running_loop(), asyncio.current_task(), sys.stdout.fileno()
    if task is None or not stat.S_ISFIFO(os.fstat(output).st_mode):
        yield
        return
    unread = False

    def stop() -> None:
        nonlocal unread
        unread = True
        loop.remove_reader(output)
        task.cancel()

    loop.add_reader(output, stop)  # a pipe that is written to is readable only when its other end is closed
    try:
        yield
    except asyncio.CancelledError:
        if unread:
            raise BrokenPipeError from None
        raise
    finally:
        loop.remove_reader(output)


def address(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Check an address. Raises BadParameter for one that is not http or https, or has a password."""
    from urllib.parse import urlsplit  # noqa: PLC0415 - help does without it

    try:
        parts = urlsplit(value)
        sound = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        raise click.BadParameter(f"{value!r} is not an address such as {ADDRESS}")
    if parts.username is not None or parts.password is not None:
        raise click.BadParameter("an address holds no password: name a key by --token-file or PQS_TOKEN")
    return value


def asking(command: Callable[Concatenate[Service, P], None]) -> Callable[P, None]:
    """Options of a command that asks the service; the command gets the service first. Put it under the arguments."""

    @click.option(
        "--url",
        metavar="URL",
        envvar=URL,
        default=ADDRESS,
        show_default=True,
        callback=address,
        help="The service's address. Also PQS_URL.",
    )
    @click.option(
        "--token-file",
        metavar="FILE",
        type=click.Path(),
        help="A file that holds the key or token to send; without it PQS_TOKEN or PQS_TOKEN_FILE counts.",
    )
    @click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(0, 3600, min_open=True),
        default=TIMEOUT,
        show_default=True,
        help="The time that a call may take, repeats included.",
    )
    @click.option("--curl", is_flag=True, help="Print the call as a command of curl, in place of making it.")
    @wraps(command)
    def with_service(*args: P.args, **kwargs: P.kwargs) -> None:
        url, token_file, timeout = (kwargs.pop(name) for name in ("url", "token_file", "timeout"))
        curl, output = bool(kwargs.pop("curl")), kwargs.pop("output", "table")
        assert isinstance(url, str)  # noqa: S101 - click made them
        assert isinstance(timeout, float)  # noqa: S101 - as above
        file = None if token_file is None else str(token_file)
        service = Service(url, token_file=file, timeout=timeout, output=str(output), curl=curl)
        command(service, *args, **kwargs)

    return with_service


F = TypeVar("F", bound=Callable[..., object])


def printing(command: F) -> F:
    """The option of a command that prints results."""
    return click.option(
        "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="The output format."
    )(command)


def in_domain(command: F) -> F:
    """The option of a command about entities."""
    return click.option(
        "--domain", metavar="NAME", default="registration", show_default=True, help="The entities' domain."
    )(command)


def limited(command: F) -> F:
    """The option of a command that prints pages."""
    return click.option(
        "--limit", metavar="N", type=click.IntRange(1), help="The most items to print; without it, all of them."
    )(command)
