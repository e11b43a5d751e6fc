"""`pqs status`: a service at a glance."""

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import click

from app.cli.output import Column, View, span
from app.cli.service import LARGEST_PAGE, Service, asking, in_domain, printing
from app.cli.statuses import UNAVAILABLE
from app.cli.terminal import GREEN, RED, YELLOW
from app.cli.watermarks import age

if TYPE_CHECKING:
    from pqs_client import Client, DeadLetterPage, OverduePage, StateCounts, Watermark

T = TypeVar("T")


class Finding(NamedTuple):
    """A line for people."""

    name: str
    value: object
    detail: str = ""
    colour: str = ""


class Glance:
    """The answers about a service; None for a part that was not asked for, or that the key has no right to.

    `missing` is the reason why the service is not ready, None if it is; then nothing else was asked. `bodies` has the
    service's own bytes of each answer.
    """

    def __init__(self, service: Service, client: "Client", domain: str) -> None:
        self._service = service
        self._client = client
        self._domain = domain
        self.at = datetime.now(UTC)
        self.stale: str | None = None  # why there is no later one
        self.missing: str | None = None
        self.refused: list[str] = []
        self.bodies: dict[str, bytes] = {}
        self.counts: StateCounts | None = None
        self.ack: OverduePage | None = None
        self.liveness: OverduePage | None = None
        self.letters: DeadLetterPage | None = None
        self.watermarks: list[Watermark] | None = None

    async def read(self) -> None:
        """Ask for all of it, one call after the other. Raises ClientError where no answer would help."""
        from pqs_client import UnavailableError  # noqa: PLC0415 - help does without it

        client, domain = self._client, self._domain
        try:
            await self._part("ready", client.ready())
        except UnavailableError as error:
            self.missing = error.detail or str(error)
            return
        self.counts = await self._part("counts", client.entities.counts(domain=domain))
        self.ack = await self._part("overdue_ack", anext(client.overdue.ack(domain=domain, limit=LARGEST_PAGE)))
        self.liveness = await self._part(
            "overdue_liveness", anext(client.overdue.liveness(domain=domain, limit=LARGEST_PAGE))
        )
        self.letters = await self._part("dead_letters", anext(client.dead_letters.pages(limit=LARGEST_PAGE)))
        self.watermarks = await self._part("watermarks", client.watermarks())

    async def _part(self, name: str, call: Awaitable[T]) -> T | None:
        from app.cli.curl import NotMadeError  # noqa: PLC0415 - as the client
        from pqs_client import ForbiddenError  # noqa: PLC0415 - help does without it

        with suppress(NotMadeError):  # printed; the next one is, too
            try:
                answer = await call
            except ForbiddenError:
                self.refused.append(name)
            else:
                self.bodies[name] = self._service.body
                return answer
        return None

    def facts(self) -> list[Finding]:
        """The lines for people."""
        if self.missing is not None:
            return [Finding("service", "not ready", self.missing, RED)]
        facts = [Finding("service", "ready", self._service.url, GREEN)]
        if self.counts is not None:
            states = ", ".join(f"{state} {count}" for state, count in self.counts.counts.items() if count)
            facts.append(Finding("entities", self.counts.total, states))
        for name, overdue in (("overdue ack", self.ack), ("overdue liveness", self.liveness)):
            if overdue is not None:
                colour = RED if overdue.items else ""
                facts.append(Finding(name, _number(overdue.items, overdue.next_cursor), since(overdue), colour))
        if self.letters is not None:
            items = self.letters.items
            oldest = f"oldest {age(items[0].created_at)} ago" if items else ""
            number = _number(items, self.letters.next_cursor)
            facts.append(Finding("dead letters", number, oldest, YELLOW if items else ""))
        if self.watermarks is not None:
            facts.append(Finding("partitions", len(self.watermarks), _behind(self.watermarks)))
        return facts


def _number(items: Sequence[object], cursor: str | None) -> str:
    return f"{len(items)}+" if cursor else str(len(items))


def since(page: "OverduePage") -> str:
    """How long the first node is overdue, and when the next one will be."""
    parts = []
    if page.items:
        parts.append(f"oldest for {span(page.items[0].overdue_seconds)}")
    if page.next_deadline is not None:
        parts.append(f"next in {span(max((page.next_deadline - datetime.now(UTC)).total_seconds(), 0))}")
    return ", ".join(parts)


def _behind(watermarks: "Sequence[Watermark]") -> str:
    known = [mark.as_of for mark in watermarks if mark.as_of is not None]
    unknown = len(watermarks) - len(known)
    parts = [f"at most {age(min(known))} behind"] if known else []
    return ", ".join(parts + [f"{unknown} with an unknown time"] * bool(unknown))


@click.command()
@in_domain
@printing
@asking
def status(service: Service, domain: str) -> None:
    """Print a service at a glance: whether it is ready, entities, overdue nodes, dead letters, partitions.

    The status is 5 when it is not ready.
    """
    view: View[Finding] = View(
        [
            Column("what", lambda fact: fact.name),
            Column("value", lambda fact: fact.value, lambda fact: fact.colour),
            Column("detail", lambda fact: fact.detail),
        ],
        name=lambda fact: f"{fact.name}: {fact.value}",
    )

    async def work(client: "Client") -> int:
        seen = Glance(service, client, domain)
        await seen.read()
        if service.curl:
            return 0
        if service.printer.is_json:
            members = b",".join(b'"%b":%b' % (name.encode(), body) for name, body in seen.bodies.items())
            service.printer.body(b"{%b}" % members)
        else:
            service.printer.page(seen.facts(), b"", view)
        if seen.refused:
            service.printer.note(f"the key has no right to {', '.join(seen.refused)}")
        return 0 if seen.missing is None else UNAVAILABLE

    service.run(work)
