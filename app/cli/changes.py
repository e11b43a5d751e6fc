"""`pqs watch`: the changes of entities, as they happen."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING
from uuid import UUID

import click

from app.cli.entities import STATES, colour_of
from app.cli.output import Column, View
from app.cli.service import Service, asking, in_domain, limited, printing, while_read
from app.domain.states import RegistrationState

if TYPE_CHECKING:
    from typing import TypeAlias

    from pqs_client import Client, FollowedChange, FollowedRow

    Item: TypeAlias = FollowedChange | FollowedRow

STATE_WIDTH = max(map(len, STATES))
EVENT_WIDTH = len("registration.liveness_expired")
TYPE_WIDTH = 12


def _view() -> "View[Item]":
    from pqs_client import FollowedChange  # noqa: PLC0415 - help does without it

    def of_change(title: str, name: str, *, wide: bool = True, least: int = 0) -> "Column[Item]":
        """A column that rows of a snapshot do not have."""
        return Column(
            title, lambda item: getattr(item, name) if isinstance(item, FollowedChange) else None, None, wide, least
        )

    return View(
        [
            Column("time", lambda item: item.occurred_at if isinstance(item, FollowedChange) else item.updated_at),
            Column("id", lambda item: item.entity_id),
            Column("domain", lambda item: item.domain, wide=True),
            of_change("before", "before", wide=False, least=STATE_WIDTH),
            Column(
                "state",
                lambda item: item.current_state,
                lambda item: colour_of(item.current_state),
                least=STATE_WIDTH,
            ),
            of_change("event", "type", wide=False, least=EVENT_WIDTH),
            of_change("outcome", "outcome"),
            Column("type", lambda item: item.node_type, least=TYPE_WIDTH),
            Column("version", lambda item: item.version),
            of_change("stored", "changed_at"),
            of_change("event id", "event_id"),
            of_change("correlation", "correlation_id"),
            of_change("reason", "reason"),
            Column("token", lambda item: item.next, wide=True),
        ],
        name=lambda item: item.entity_id,
    )


@click.command()
@click.option(
    "--after",
    metavar="TOKEN",
    default="now",
    show_default=True,
    help="Where to begin: a token, `now`, or `start` for the oldest change that is kept.",
)
@click.option("--snapshot", is_flag=True, help="Print all rows first, and then the changes since.")
@click.option("--id", "entity_ids", metavar="ID", multiple=True, type=click.UUID, help="An entity; may be repeated.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="A state entered or left; may be repeated."
)
@click.option("--type", "node_type", metavar="NAME", help="The type of the nodes.")
@click.option("--event", "types", metavar="TYPE", multiple=True, help="A type of events; may be repeated.")
@click.option("--rows", is_flag=True, help="Each change with its row, in JSON, where the service logs rows.")
@in_domain
@limited
@printing
@asking
def watch(
    service: Service,
    after: str,
    snapshot: bool,
    entity_ids: Sequence[UUID],
    states: Sequence[str],
    node_type: str | None,
    types: Sequence[str],
    rows: bool,
    domain: str,
    limit: int | None,
) -> None:
    """Print the changes of entities as they happen, until stopped.

    It goes on across broken connections. JSON has a line for each change, with the token of its place: store `next`,
    and begin there with --after. A line of the kind `bookmark` has a token only.
    """

    async def work(client: "Client") -> None:
        from pqs_client import FollowedChange, FollowedRow, Reset  # noqa: PLC0415 - help does without it

        view = _view()
        told = 0
        news = client.changes(
            after=None if snapshot or after == "start" else after,
            snapshot=snapshot,
            rows=rows,
            domain=domain,
            entity_id=entity_ids,
            state=[RegistrationState(state) for state in states],
            node_type=node_type,
            type_=types,
        )
        async with aclosing(news), while_read():
            async for each in news:
                if isinstance(each, FollowedChange | FollowedRow):
                    service.printer.line(each, service.body, view)
                    told += 1
                    if told == limit:
                        return
                elif isinstance(each, Reset):
                    click.echo(f"pqs: the place is lost ({each.reason}): all rows follow", err=True)
                elif service.printer.is_json:
                    service.printer.body(service.body)

    service.run(work)
