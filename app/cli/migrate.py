"""`pqs migrate`, and the migration that `pqs serve` makes on its own database."""

import asyncio

import click

from app.cli.operators import operator
from app.cli.options import DATABASE, logged_settings, settings_options
from app.runtime.database import database_of
from app.store import schema
from app.store.failures import translated


@click.command()
@click.option(
    "--to",
    "target",
    default=schema.HEAD,
    metavar="REVISION",
    help="Migrate up or down to this revision; `base` is a database without tables.",
)
@click.option(
    "--lock-wait",
    type=click.FloatRange(min=0),
    default=schema.LOCK_WAIT,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for another migration of the same database.",
)
@settings_options(*DATABASE)
def migrate(target: str, lock_wait: float, **given: str | None) -> None:
    """Bring the database's schema to the revision that this release expects.

    It is safe to repeat, and to run twice at once. It also sets sequences that logical replication left behind.
    """
    settings = logged_settings(given)
    with database_of(settings, create=True) as url:
        was, is_ = asyncio.run(_migrate(url, target, lock_wait))
    click.echo(f"the schema moved from {was} to {is_}" if was != is_ else f"the schema is already at {is_}")


async def bring_up_to_date(url: str) -> None:
    """Migrate a database to this release's revision, if it is not there yet."""
    with translated():
        current = await schema.is_current(url)
    if not current:
        await _migrate(url, schema.HEAD)


async def _migrate(url: str, target: str, lock_wait: float = schema.LOCK_WAIT) -> tuple[str, str]:
    engine = schema.create_engine(url, pool_size=2)
    try:
        with translated():
            return await schema.initialize_schema(engine, target, by=operator(), lock_wait=lock_wait)
    finally:
        await engine.dispose()
