"""The `pqs` command."""

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TypeVar
from uuid import UUID

import click
import msgspec
import uvicorn
from uvicorn.supervisors import Multiprocess

from app import log, main
from app.api.context import correlation_id
from app.api.metrics import SHARED_DIRECTORY
from app.consumer import consuming
from app.domain.events import DEFAULT_DOMAIN
from app.domain.positions import MAX_NUMBER, Position
from app.effects import contract
from app.errors import PqsError, StartError
from app.load import load_file, service_url
from app.outgoing import outgoing_of
from app.relay import relaying
from app.settings import PREFIX, BusKind, Settings, read_settings
from app.store import registrations, schema
from app.store.database import Connection, Database, translated
from app.store.embedded import EmbeddedPostgres, running_url
from app.sweep import sweeping

logger = logging.getLogger(__name__)

SHUTDOWN = 10  # seconds that open requests have to end
WATCH = 1.0  # seconds between two looks at whether the own PostgreSQL is still there
KEEP_ALIVE = 30  # seconds that an idle connection stays open
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
        with _listen(settings.host, settings.port) as listener, _own_database(settings) as url:
            if settings.database_url is None:
                asyncio.run(_bring_up_to_date(url))
            _export(settings.model_copy(update={"database_url": url}))
            contract.log_what_is_off(routes)  # here once, and not in every worker
            _announce(settings, listener)
            _run(settings, listener)
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
    with _database(settings, create=True) as url:
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
        moved = await registrations.rebase(connection, entity_id, domain, position)
        if moved is None:
            raise StartError(f"there is no entity {entity_id} in domain {domain}")
        before, after = moved
        return f"{entity_id} stood at {before.position}, and stands at {after.position}, version {after.version}"

    with _database(settings) as url:
        said = asyncio.run(_transaction(url, settings, work))
    logger.warning("rebased: %s in domain %s", said, domain)
    click.echo(said)


@pqs.command()
@settings_options("database_url", "data_dir", "log_level", "log_format")
def verify(**given: str | None) -> None:
    """Compare the state counts with a full count, and say what differs. Status 1 when something does."""
    settings = _command_settings(given)
    with _database(settings) as url:
        differing = asyncio.run(_transaction(url, settings, registrations.verify_counts))
    for each in differing:
        click.echo(f"domain {each.domain}, {each.state}: kept {each.kept:,}, counted {each.counted:,}")
    if differing:
        sys.exit(1)
    click.echo("the state counts are what a full count gives")


@pqs.command()
@settings_options(
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
def relay(**given: str | None) -> None:
    """Send what waits in the outbox to the bus and to Consul, until stopped. Many may run, and share the work.

    A service does the same within it, unless PQS_RELAY is off there.
    """
    settings = _command_settings(given)
    if settings.bus is BusKind.MEMORY:
        raise StartError("PQS_BUS=memory is a bus inside `pqs serve`: what this sent to one of its own would be lost")
    if settings.bus is BusKind.OFF and settings.consul_url is None:
        raise StartError("there is nowhere to send to; set PQS_KAFKA, PQS_CONSUL_URL or both")

    async def work(url: str) -> None:
        async with relaying(settings, url):
            click.echo("relaying")
            await _stopped()

    with _database(settings) as url:
        _run_to_its_end(work(url))


@pqs.command()
@settings_options(
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
def sweep(**given: str | None) -> None:
    """Turn passed deadlines into events, until stopped. Many may run, and share the work.

    A service does the same within it where PQS_SWEEP is true. What follows goes to the outbox, as it does there, so
    PQS_KAFKA, PQS_BUS, PQS_TOPIC_OUT and PQS_CONSUL_URL are to be what the service has.
    """
    settings = _command_settings(given)
    outgoing = outgoing_of(settings)

    async def work(url: str) -> None:
        async with sweeping(settings, url, outgoing):
            click.echo("sweeping")
            await _stopped()

    with _database(settings) as url:
        asyncio.run(work(url))


@pqs.command()
@settings_options(
    "database_url",
    "data_dir",
    "statement_timeout",
    "ack_timeout",
    "liveness_interval",
    "liveness_window",
    "kafka",
    "bus",
    "topic_out",
    "topics_in",
    "consumer_group",
    "consul_url",
    "log_level",
    "log_format",
)
def consume(**given: str | None) -> None:
    """Read events from Kafka, until stopped. Many may run at once, and share the partitions of the topics."""
    settings = _command_settings(given)

    async def work(url: str) -> None:
        async with consuming(settings, url) as consumer:
            stop = asyncio.Event()
            reading = asyncio.create_task(consumer.run(stop))
            stopping = asyncio.create_task(_stopped())
            click.echo(f"consuming {settings.topics_in}")
            await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            stopping.cancel()
            await reading

    with _database(settings) as url:
        asyncio.run(work(url))


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


def _command_settings(given: dict[str, str | None]) -> Settings:
    settings = read_settings(given)
    log.configure(settings.log_level, settings.log_format)
    return settings


@contextmanager
def _own_database(settings: Settings) -> Iterator[str]:
    """The address of the database: the one that is set, or that of a PostgreSQL which lives as long as this."""
    _stop_on_signals()
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    server = EmbeddedPostgres(settings.data_dir)
    with server as url:
        ended = threading.Event()
        threading.Thread(target=_end_with, args=[server, ended], daemon=True).start()
        try:
            yield url
        finally:
            ended.set()
            _ignore_signals()
            if not server.is_running():
                raise StartError(f"the PostgreSQL in {settings.data_dir} has ended; postgres.log there says why")


def _end_with(server: EmbeddedPostgres, ended: threading.Event) -> None:
    """End this command when its PostgreSQL ends: without that, no request would ever be answered again."""
    while not ended.wait(WATCH):
        if not server.is_running():
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _stop_on_signals() -> None:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a KeyboardInterrupt, once: see _ignore_signals."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))  # uvicorn knows that one


def _run_to_its_end(work: Coroutine[None, None, None]) -> None:
    """Run a worker on the event loop that `pqs serve` has: uvloop where it is installed."""
    with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
        runner.run(work)


async def _stopped() -> None:
    """Wait for Ctrl-C or SIGTERM, which then stop nothing by themselves: what is under way can come to its end."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for each in STOPPING:
        if signal.getsignal(each) is not signal.SIG_IGN:
            loop.add_signal_handler(each, stopped.set)
    await stopped.wait()


def _ignore_signals() -> None:
    """From here on the database is being stopped; an impatient second Ctrl-C would leave it running."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)


@contextmanager
def _database(settings: Settings, *, create: bool = False) -> Iterator[str]:
    """The same for a command beside a running service, whose PostgreSQL it shares. Only `create` makes a new one."""
    if settings.database_url is None:
        url = running_url(settings.data_dir)
        if url is not None:
            yield url
            return
        if not create and not (settings.data_dir / "postgres").exists():
            raise StartError(f"there is no database in {settings.data_dir}; is PQS_DATA_DIR what `pqs serve` has?")
    with _own_database(settings) as own:
        yield own


async def _bring_up_to_date(url: str) -> None:
    with translated():
        current = await schema.is_current(url)
    if not current:
        await _migrate(url, schema.HEAD)


async def _migrate(url: str, target: str) -> tuple[str, str]:
    engine = schema.create_engine(url, pool_size=2)
    try:
        with translated():
            return await schema.migrate(engine, target)
    finally:
        await engine.dispose()


async def _transaction(url: str, settings: Settings, work: Callable[[Connection], Coroutine[None, None, T]]) -> T:
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=settings.statement_timeout))
    try:
        return await database.write(work)
    finally:
        await database.close()


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, before anything else starts: a port in use is said at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = "it is already in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise StartError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host and --port"
        ) from None
    with listener:
        yield listener


def _export(settings: Settings) -> None:
    """Hand the settings down to the worker processes."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(getattr(value, "get_secret_value", lambda value=value: value)())


class _Server(uvicorn.Server):
    """A server that closes what the lifespan opened even when a second Ctrl-C has cut its open requests off."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, let the open ones end, and end the lifespan."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def _run(settings: Settings, listener: socket.socket) -> None:
    config = uvicorn.Config(
        "app.main:from_environment",
        factory=True,
        workers=settings.workers,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        http="app.api.hot:HotProtocol",  # by name: this process may serve nothing itself
        ws="none",
        proxy_headers=False,  # nothing here depends on who asks, or by which scheme
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN,
    )
    if settings.workers == 1:
        _Server(config).run(sockets=[listener])
        return
    with tempfile.TemporaryDirectory(prefix="pqs-metrics-") as shared:
        os.environ[SHARED_DIRECTORY] = shared
        Multiprocess(config, sockets=[listener]).run()


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
