"""`pqs top`: a screen that shows a service as it works."""

import sys
from collections import deque
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import click

from app.cli.entities import colour_of
from app.cli.output import instant, span
from app.cli.service import Service, asking, in_domain
from app.cli.status import Glance
from app.cli.terminal import DIM, GREEN, RED, YELLOW, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pqs_client import Client, FollowedChange

INTERVAL = 2.0  # seconds
LAST = 10  # changes on the screen
RATED = 60.0  # seconds over which changes are counted
BAR = 30  # columns
STYLES = {"": "", GREEN: "green", RED: "red", YELLOW: "yellow", DIM: "dim"}


class Recent:
    """The last changes, and their rate."""

    def __init__(self) -> None:
        self.changes: deque[FollowedChange] = deque(maxlen=LAST)
        self.off: str | None = None  # why there are none
        self._times: deque[float] = deque()

    async def follow(self, client: "Client", domain: str) -> None:
        """Take note of changes, until cancelled."""
        import asyncio  # noqa: PLC0415 - help does without it

        from pqs_client import ClientError, FollowedChange  # noqa: PLC0415 - help does without it

        clock = asyncio.get_running_loop().time
        try:
            async with aclosing(client.changes(after="now", domain=domain)) as news:
                async for each in news:
                    if isinstance(each, FollowedChange):
                        self.changes.append(each)
                        self._times.append(clock())
        except ClientError as error:
            self.off = str(error)

    def rate(self, now: float) -> float:
        """Changes a second, over the last minute."""
        while self._times and self._times[0] < now - RATED:
            self._times.popleft()
        return len(self._times) / RATED


@click.command()
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.2, 3600),
    default=INTERVAL,
    show_default=True,
    help="The time between two looks.",
)
@click.option("--looks", metavar="N", type=click.IntRange(1), help="Stop after so many looks.")
@in_domain
@asking
def top(service: Service, interval: float, looks: int | None, domain: str) -> None:
    """Show a service on the screen as it works, until Ctrl-C.

    Entities by state, overdue nodes, dead letters, partitions, and the last changes. It needs rich: install
    projection-query-service[top].
    """
    try:
        from rich.live import Live  # noqa: PLC0415 - an extra
    except ImportError:
        raise click.UsageError("this needs rich: pip install 'projection-query-service[top]'") from None
    if not service.curl and not sys.stdout.isatty():
        raise click.UsageError("standard output is not a terminal; `pqs status` prints the same once")

    async def work(client: "Client") -> None:
        import asyncio  # noqa: PLC0415 - help does without it

        recent = Recent()
        if service.curl:
            await Glance(service, client, domain).read()
            return
        clock = asyncio.get_running_loop().time
        seen = Glance(service, client, domain)
        await seen.read()
        following = asyncio.create_task(recent.follow(client, domain))
        try:
            with Live(auto_refresh=False, screen=looks is None) as live:
                taken = 1
                while True:
                    live.update(_screen(seen, recent, recent.rate(clock())), refresh=True)
                    if taken == looks:
                        return
                    await asyncio.sleep(interval)
                    taken += 1
                    seen = await _again(seen, Glance(service, client, domain))
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    service.run(work)


async def _again(last: Glance, next_: Glance) -> Glance:
    """The next look; where the service is away, the last one, marked."""
    from pqs_client import ClientError  # noqa: PLC0415 - help does without it

    try:
        await next_.read()
    except ClientError as error:
        last.stale = str(error)
        return last
    return next_


def _screen(seen: Glance, recent: Recent, rate: float) -> "RenderableType":
    """All of the screen. Data becomes text here, never markup."""
    from rich.console import Group  # noqa: PLC0415 - an extra
    from rich.table import Table  # noqa: PLC0415 - an extra
    from rich.text import Text  # noqa: PLC0415 - an extra

    facts = Table.grid(padding=(0, 2))
    for fact in seen.facts():
        style = STYLES[fact.colour]
        facts.add_row(Text(fact.name, "bold"), Text(plain(str(fact.value)), style), Text(plain(fact.detail)))
    parts: list[RenderableType] = [Text(f"pqs top  {instant(seen.at, exact=False)}", "bold"), facts]
    if seen.stale is not None:
        parts.insert(1, Text(f"the service does not answer; these numbers are old: {plain(seen.stale)}", "bold red"))
    if seen.counts is not None:
        states = Table.grid(padding=(0, 2))
        for state, count in seen.counts.counts.items():
            bar = "█" * round(BAR * count / max(seen.counts.total, 1))
            states.add_row(Text(str(state)), Text(str(count), justify="right"), Text(bar, STYLES[colour_of(state)]))
        parts += [Text(), states]
    if recent.off is not None:
        parts += [Text(), Text(f"changes: {plain(recent.off)}", "dim")]
    else:
        changes = Table.grid(padding=(0, 2))
        for change in reversed(recent.changes):
            changes.add_row(
                Text(instant(change.occurred_at, exact=False), "dim"),
                Text(str(change.entity_id)),
                Text(str(change.before or "-")),
                Text(str(change.current_state), STYLES[colour_of(change.current_state)]),
                Text(plain(change.type)),
            )
        parts += [Text(), Text(f"changes: {rate:.1f} a second over {span(RATED)}", "bold"), changes]
    return Group(*parts)
