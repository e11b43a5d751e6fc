"""`pqs relay`, `pqs sweep` and `pqs consume`: workers beside `pqs serve`."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

import click

from app.cli.operators import operator
from app.cli.options import CONSUMER_OPTIONS, WORKER, logged_settings, settings_options
from app.cli.starting import consul_trouble, kafka_trouble, tell
from app.cli.worker_door import metrics_socket, worker_calls
from app.concurrency.worker import OwnWorker
from app.errors import StartError
from app.parts import Parts
from app.runtime import log
from app.runtime.database import run_worker
from app.runtime.processes import server_tls
from app.runtime.side_server import answering
from app.runtime.sockets import shown
from app.settings import BusKind, Settings


@click.command()
@settings_options(*WORKER)
def relay(**given: str | None) -> None:
    """Send the messages in the outbox to the bus and to Consul, until stopped.

    Several may run and share the work. `pqs serve` runs a relay, too, unless its PQS_RELAY is off. With Consul, one
    of them compares its services with the rows from time to time.
    """
    settings = logged_settings(given)
    if settings.bus is BusKind.MEMORY:
        raise StartError("PQS_BUS=memory is a bus inside `pqs serve`: this relay would send its messages to nobody")
    if settings.bus is BusKind.OFF and settings.consul_url is None:
        raise StartError("there is nowhere to send to; set PQS_KAFKA, PQS_CONSUL_URL or both")

    _run(settings, Parts.senders, "relaying", reaches=(kafka_trouble, consul_trouble))


@click.command()
@settings_options(*WORKER, "tracks")
def sweep(**given: str | None) -> None:
    """Turn passed deadlines into events, until stopped.

    Several may run and share the work. `pqs serve` runs a sweep, too, if its PQS_SWEEP is true. The resulting
    messages go to the outbox: give PQS_KAFKA, PQS_BUS, PQS_TOPIC_OUT and PQS_CONSUL_URL the values that the service
    has.
    """
    _run(logged_settings(given), Parts.sweep, "sweeping")


@click.command()
@settings_options(
    *WORKER, "ack_timeout", "liveness_interval", "liveness_window", "topics_in", "consumer_group", *CONSUMER_OPTIONS
)
@click.option(
    "--restarted", metavar="TOPIC", help="This topic was deleted and created again: read it from its first message."
)
def consume(restarted: str | None, **given: str | None) -> None:
    """Read events from Kafka, until stopped.

    Several may run and share the partitions of the topics. The resulting messages go to the outbox: give PQS_BUS,
    PQS_TOPIC_OUT and PQS_CONSUL_URL the values that the service has; otherwise messages wait there for a topic that
    no relay sends to. PQS_TOPICS_IN must not contain PQS_TOPIC_OUT.
    """
    settings = logged_settings(given)

    async def restart(parts: Parts) -> None:
        if restarted is not None:
            number = await parts.restart(restarted, operator())
            click.echo(f"{restarted} is read from its first message; {number:,} entities were moved there")

    _run(settings, Parts.consumer, f"consuming {settings.topics_in}", first=restart)


@click.command()
@settings_options(*WORKER, "topic_snapshots", "snapshots_drop_expired")
def snapshots(**given: str | None) -> None:
    """Publish the whole row of each entity that changes to a compacted topic.

    It runs until stopped. Several may run: one is at work, and another takes over when it ends. `pqs serve` publishes
    too, where PQS_TOPIC_SNAPSHOTS is set, unless its PQS_SNAPSHOTS is false.
    """
    settings = logged_settings(given)
    _run(settings, Parts.snapshots, f"publishing to {settings.topic_snapshots}", reaches=(kafka_trouble,))


async def _nothing(_parts: Parts) -> None:
    """Do nothing."""


def _run(
    settings: Settings,
    build: Callable[[Parts], OwnWorker],
    said: str,
    *,
    first: Callable[[Parts], Coroutine[None, None, None]] = _nothing,
    reaches: Sequence[Callable[[Settings], Coroutine[None, None, str | None]]] = (),
) -> None:
    """Do what comes first, print `said`, and let a worker run until this process is stopped.

    `reaches` say why the other sides that the worker needs cannot be reached, for `/readyz`.
    """

    async def work(url: str, stop: asyncio.Event, listener: socket.socket | None) -> None:
        async with Parts(settings, url) as parts:
            worker = build(parts)
            await first(parts)
            await parts.announce()
            await tell(settings, url, [] if listener is None else [f"{shown(listener)} (metrics)"])
            if listener is None:
                log.say(said, settings.log_format, "started")
                await worker.run(stop)
                return
            others = [partial(reach, settings) for reach in reaches]
            async with answering(await worker_calls(settings, parts, worker, others), listener, server_tls(settings)):
                log.say(said, settings.log_format, "started")
                await worker.run(stop)

    if settings.metrics_port is None:
        run_worker(settings, lambda url, stop: work(url, stop, None))
        return
    with metrics_socket(settings, settings.metrics_port) as listener:
        run_worker(settings, lambda url, stop: work(url, stop, listener))
