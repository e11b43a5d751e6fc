"""`pqs workflows`: the state of workflows."""

import sys
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import click

from app.cli.output import Column, View, compact
from app.cli.service import Service, asking, limited, printing
from app.cli.values import json_object, moment

if TYPE_CHECKING:
    from pqs_client import Client, Workflow, WorkflowPage

DEFAULT_EFFECT = "pqs workflows put"  # the effect_id of a commit without one


def _view(*, whole: bool) -> "View[Workflow]":
    return View(
        [
            Column("key", lambda row: row.workflow_key),
            Column("version", lambda row: row.version),
            Column("updated", lambda row: row.updated_at),
            Column("effect", lambda row: row.provenance.get("effect_id")),
            Column("schema version", lambda row: row.schema_version, wide=not whole),
            Column("provenance", lambda row: compact(row.provenance), wide=not whole),
            Column("state", lambda row: compact(row.state), wide=not whole),
        ],
        name=lambda row: row.workflow_key,
    )


@click.group()
def workflows() -> None:
    """List, get and put the state of workflows."""


@workflows.command("list")
@click.option(
    "--order",
    type=click.Choice(["oldest", "newest", "key"]),
    default="oldest",
    show_default=True,
    help="The oldest or the newest change first, or by key.",
)
@click.option("--prefix", metavar="TEXT", help="The beginning of their keys.")
@click.option("--updated-since", type=moment, metavar="TIME", help="Workflows that changed at this time or later.")
@limited
@printing
@asking
def list_workflows(
    service: Service,
    order: Literal["oldest", "newest", "key"],
    prefix: str | None,
    updated_since: datetime | None,
    limit: int | None,
) -> None:
    """List the workflows, oldest change first."""

    async def work(client: "Client") -> None:
        def pages(size: int, cursor: str | None) -> "AsyncGenerator[WorkflowPage, None]":
            return client.workflows.pages(
                order=order, key_prefix=prefix, updated_since=updated_since, limit=size, cursor=cursor
            )

        await service.pages(pages, _view(whole=False), limit)

    service.run(work)


@workflows.command()
@click.argument("key")
@printing
@asking
def get(service: Service, key: str) -> None:
    """Print a workflow with its state."""

    async def work(client: "Client") -> None:
        row = await client.workflows.get(key)
        service.printer.one(row, service.body, _view(whole=True))

    service.run(work)


@workflows.command()
@click.argument("key")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--create", is_flag=True, help="The workflow has no row yet.")
@click.option("--if-version", type=click.IntRange(1), help="The workflow is at this version.")
@click.option("--schema-version", type=click.IntRange(1), default=1, show_default=True, help="The state's schema.")
@click.option("--effect", metavar="ID", default=DEFAULT_EFFECT, show_default=True, help="What computed the state.")
@click.option("--action", metavar="ID", help="The action, which is applied once; without it, a new one.")
@click.option("--provenance", type=json_object, metavar="JSON", help="More of the state's provenance.")
@printing
@asking
def put(
    service: Service,
    key: str,
    file: str,
    create: bool,
    if_version: int | None,
    schema_version: int,
    effect: str,
    action: str | None,
    provenance: dict[str, object] | None,
) -> None:
    """Commit the state in FILE, a JSON object; - is standard input.

    Say what the commit builds on: --create, or --if-version. The status is 4 when another commit was faster.
    """
    if create == (if_version is not None):
        raise click.UsageError("give either --create or --if-version")
    state = _state(file)
    made = {"effect_id": effect, "timestamp": datetime.now(UTC), "action_id": action or str(uuid4())}
    why = {**made, **(provenance or {})}

    async def work(client: "Client") -> None:
        if if_version is None:
            done = await client.workflows.create(key, state, why, schema_version=schema_version)
        else:
            done = await client.workflows.commit(key, if_version, state, why, schema_version=schema_version)
        service.printer.one(done.workflow, service.body, _view(whole=True))

    service.run(work)


def _state(file: str) -> Mapping[str, object]:
    """Read a JSON object. Raises BadParameter."""
    import json  # noqa: PLC0415 - help does without it

    def refuse(name: str) -> object:
        raise ValueError(f"{name} is not JSON")

    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        state = json.loads(content, parse_constant=refuse)
    except ValueError as error:
        raise click.BadParameter(f"it is not JSON: {error}", param_hint="FILE") from None
    if not isinstance(state, dict):
        raise click.BadParameter("it is not a JSON object", param_hint="FILE")
    return state
