"""`pqs db-url`, `pqs intents` and `pqs openapi`: they print facts from the settings and the code."""

import json

import click

from app.cli.options import settings_options
from app.embedded.postgres import running_url
from app.errors import StartError
from app.outbound import contract
from app.settings import read_settings


@click.command("db-url")
@settings_options("database_url", "data_dir")
def db_url(**given: str | None) -> None:
    """Print the address of the database, for psql: psql "$(pqs db-url)"."""
    settings = read_settings(given)
    if settings.database_url is not None:
        click.echo(settings.database_url.get_secret_value())
        return
    url = running_url(settings.data_dir)
    if url is None:
        raise StartError(f"no PostgreSQL runs in {settings.data_dir} now; `pqs serve` starts it")
    click.echo(url)


@click.command()
@settings_options("consul_url")
def intents(**given: str | None) -> None:
    """Print which handler carries out each intent, and what the handler needs."""
    lines = [("intent", "handler", "needs")]
    for each in contract.routes_of(read_settings(given)):
        off = each.handler == contract.OFF
        lines.append((each.intent, each.handler, contract.needed(each.needs) + (": not set" if off else "")))
    for intent, handler, needs in lines:
        click.echo(f"{intent:<30}{handler:<10}{needs}")


@click.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from app import main  # noqa: PLC0415 - it takes a second, and the other commands do not need it

    application = main.create_app(read_settings({"database_url": "postgresql:///"}))
    click.echo(json.dumps(application.openapi(), indent=2, ensure_ascii=False))
