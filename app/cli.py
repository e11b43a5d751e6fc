"""The `pqs` command."""

import asyncio
import json
import logging
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import click
import msgspec

from app import main
from app.api.context import correlation_id
from app.domain.events import DEFAULT_DOMAIN
from app.domain.positions import MAX_NUMBER, Position
from app.embedded.postgres import running_url
from app.errors import PqsError, StartError
from app.load import load_file, service_url
from app.outbound import contract
from app.parts import Parts
from app.runtime import log
from app.runtime.database import database_of, own_database, run_worker
from app.runtime.processes import export, run
from app.runtime.sockets import listening
from app.settings import PREFIX, BusKind, Settings, read_settings
from app.store import schema
from app.store.database import Connection, Database, translated
from app.store.registrations import REGISTRATIONS
from app.worker import Worker

logger = logging.getLogger(__name__)

# The settings of every worker.
WORKER = (
    "database_url",
    "data_dir",
    "statement_timeout",
    "kafka",
    "bus",
    "topic_out",
    "consul_url",
    "log_level",
    "log_format",
)

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


def settings_options(*names: str) -> Callable[[F], F]:
    """Options for these settings, told and checked by Settings itself."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            field = Settings.model_fields[name]
            default = "" if field.default is None or field.default_factory else f" Default: {field.default}."
            command = click.option(
                f"--{name.replace('_', '-')}",
                name,
                metavar="VALUE",
                help=f"{field.description}{default} Also {PREFIX}{name.upper()}.",
            )(command)
        return command

    return decorate


class Commands(click.Group):
    """A group whose commands end with one line on standard error, and status 1, where something is in their way."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PqsError as error:
            click.echo(f"pqs: {error}", err=True)
            sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="projection-query-service", prog_name="pqs")
def pqs() -> None:
    """Projection Query Service: where each node stands in its registration, kept from events, asked over REST.

    Every option is also an environment variable: --data-dir is PQS_DATA_DIR.
    """


@pqs.command()
@settings_options(*Settings.model_fields)
def serve(**given: str | None) -> None:
    """Answer requests. Without a database URL, on a PostgreSQL of its own in the data directory."""
    settings = read_settings(given)
    log.configure(settings.log_level, settings.log_format, correlation_id.get)
    routes = contract.routes_of(settings)
    try:
        with listening(settings.host, settings.port, settings.workers) as sockets, own_database(settings) as url:
            if settings.database_url is None:
                asyncio.run(_bring_up_to_date(url))
            export(settings.model_copy(update={"database_url": url}))
            contract.log_what_is_off(routes)  # here once, and not in every worker
            _announce(settings, sockets[0])
            run(settings, sockets)
    except KeyboardInterrupt:
        click.echo("stopped")


@pqs.command()
@click.option(
    "--to", "target", default=schema.HEAD, metavar="REVISION", help="Up or down to this revision; `base` is none."
)
@settings_options("database_url", "data_dir", "log_level", "log_format")
def migrate(target: str, **given: str | None) -> None:
    """Bring the database's schema to the revision that this release expects. Safe to repeat, and twice at once."""
    settings = _command_settings(given)
    with database_of(settings, create=True) as url:
        was, is_ = asyncio.run(_migrate(url, target))
    click.echo(f"the schema was at {was} and is at {is_}" if was != is_ else f"the schema is at {is_} already")


@pqs.command()
@click.argument("file", type=click.Path(allow_dash=True))
@click.option(
    "--url",
    metavar="URL",
    help="The service's address, such as http://127.0.0.1:8000, in place of --host and --port.",
)
@settings_options("host", "port")
def load(file: str, url: str | None, **given: str | None) -> None:
    """Send a file of events, one JSON object a line, to the service; - is standard input.

    The file may be packed with gzip or xz. Events that come before what they build on are sent again at the end, by
    entity and position. The status is 1 when a line is not in; standard error lists such lines with their reasons.
    """
    settings = read_settings(given)
    sys.exit(load_file(file, url or service_url(settings.host, settings.port)))


@pqs.command()
@click.argument("entity_id", type=click.UUID)
@click.option("--domain", default=DEFAULT_DOMAIN, show_default=True, help="The entity's domain.")
@click.option("--sequence", type=click.IntRange(0, MAX_NUMBER), help="Stand at this sequence.")
@click.option("--partition", help="Stand at an offset of this partition.")
@click.option("--offset", type=click.IntRange(0, MAX_NUMBER), help="Stand at this offset.")
@settings_options("database_url", "data_dir", "log_level", "log_format")
def rebase(
    entity_id: UUID, domain: str, sequence: int | None, partition: str | None, offset: int | None, **given: str | None
) -> None:
    """Move an entity to another track, by hand: its position and version change, nothing else."""
    place = {"sequence": sequence, "partition": partition, "offset": offset}
    try:
        position = msgspec.convert({name: value for name, value in place.items() if value is not None}, Position)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error).replace("`", "")) from None
    if not (domain + (partition or "")).isprintable():  # bytes that are not UTF-8 come as lone surrogates
        raise click.UsageError("--domain and --partition take printable characters in UTF-8")
    settings = _command_settings(given)

    async def work(connection: Connection) -> str:
        moved = await REGISTRATIONS.rebase(connection, entity_id, domain, position)
        if moved is None:
            raise StartError(f"there is no entity {entity_id} in domain {domain}")
        before, after = moved
        return f"{entity_id} stood at {before.position}, and stands at {after.position}, version {after.version}"

    with database_of(settings) as url:
        said = asyncio.run(_transaction(url, settings, work))
    logger.warning("rebased: %s in domain %s", said, domain)
    click.echo(said)


@pqs.command()
@settings_options("database_url", "data_dir", "log_level", "log_format")
def verify(**given: str | None) -> None:
    """Compare the state counts with a full count, and say what differs. Status 1 when something does."""
    settings = _command_settings(given)
    with database_of(settings) as url:
        differing = asyncio.run(_transaction(url, settings, REGISTRATIONS.counts.verify_counts))
    for each in differing:
        click.echo(f"domain {each.domain}, {each.state}: kept {each.kept:,}, counted {each.counted:,}")
    if differing:
        sys.exit(1)
    click.echo("the state counts are what a full count gives")


@pqs.command()
@settings_options(*WORKER)
def relay(**given: str | None) -> None:
    """Send what waits in the outbox to the bus and to Consul, until stopped. Many may run, and share the work.

    A service does the same within it, unless PQS_RELAY is off there.
    """
    settings = _command_settings(given)
    if settings.bus is BusKind.MEMORY:
        raise StartError("PQS_BUS=memory is a bus inside `pqs serve`: what this sent to one of its own would be lost")
    if settings.bus is BusKind.OFF and settings.consul_url is None:
        raise StartError("there is nowhere to send to; set PQS_KAFKA, PQS_CONSUL_URL or both")

    _run(settings, Parts.relay, "relaying")


@pqs.command()
@settings_options(*WORKER)
def sweep(**given: str | None) -> None:
    """Turn passed deadlines into events, until stopped. Many may run, and share the work.

    A service does the same within it where PQS_SWEEP is true. What follows goes to the outbox, as it does there, so
    PQS_KAFKA, PQS_BUS, PQS_TOPIC_OUT and PQS_CONSUL_URL are to be what the service has.
    """
    _run(_command_settings(given), Parts.sweep, "sweeping")


@pqs.command()
@settings_options(*WORKER, "ack_timeout", "liveness_interval", "liveness_window", "topics_in", "consumer_group")
def consume(**given: str | None) -> None:
    """Read events from Kafka, until stopped. Many may run at once, and share the partitions of the topics.

    What follows goes to the outbox, as it does in a service, so PQS_BUS, PQS_TOPIC_OUT and PQS_CONSUL_URL are to be
    what the service has: what is for a topic that no relay has waits there. PQS_TOPICS_IN is not to have that topic.
    """
    settings = _command_settings(given)
    _run(settings, Parts.consumer, f"consuming {settings.topics_in}")


@pqs.command("db-url")
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


@pqs.command()
@settings_options("consul_url")
def intents(**given: str | None) -> None:
    """Print who carries each intent out, and what that needs."""
    lines = [("intent", "handler", "needs")]
    for each in contract.routes_of(read_settings(given)):
        off = each.handler == contract.OFF
        lines.append((each.intent, each.handler, contract.needed(each.needs) + (": not set" if off else "")))
    for intent, handler, needs in lines:
        click.echo(f"{intent:<30}{handler:<10}{needs}")


@pqs.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    application = main.create_app(read_settings({"database_url": "postgresql:///"}))
    click.echo(json.dumps(application.openapi(), indent=2, ensure_ascii=False))


def _run(settings: Settings, build: Callable[[Parts], Worker], said: str) -> None:
    """Say that a worker is there, and let it work until this process is stopped."""

    async def work(url: str, stop: asyncio.Event) -> None:
        async with Parts(settings, url) as parts:
            worker = build(parts)
            click.echo(said)
            await worker.run(stop)

    run_worker(settings, work)


def _command_settings(given: dict[str, str | None]) -> Settings:
    settings = read_settings(given)
    log.configure(settings.log_level, settings.log_format)
    return settings


async def _bring_up_to_date(url: str) -> None:
    with translated():
        current = await schema.is_current(url)
    if not current:
        await _migrate(url, schema.HEAD)


async def _migrate(url: str, target: str) -> tuple[str, str]:
    engine = schema.create_engine(url, pool_size=2)
    try:
        with translated():
            return await schema.initialize_schema(engine, target)
    finally:
        await engine.dispose()


async def _transaction(url: str, settings: Settings, work: Callable[[Connection], Coroutine[None, None, T]]) -> T:
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=settings.statement_timeout))
    try:
        return await database.write(work)
    finally:
        await database.close()


def _announce(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    base = f"http://{shown}:{port}"
    event = {
        "event_id": "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1d01",
        "type": "registration.initiated",
        "entity_id": "7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a",
        "domain": "example",
        "position": {"sequence": 1},
        "occurred_at": "2026-01-01T00:00:00Z",
        "data": {"node_type": "compute"},
    }
    click.echo(
        f"serving on {base}, docs on {base}/docs\n\n"
        f"  curl {base}/v1/events -H content-type:application/json -d '{json.dumps(event)}'\n"
        f"  curl '{base}/v1/entities/{event['entity_id']}?domain=example'\n"
        f"  curl '{base}/v1/state-counts?domain=example'\n"
    )
    with suppress(OSError):
        sys.stdout.flush()
