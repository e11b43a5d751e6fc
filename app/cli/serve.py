"""`pqs serve`."""

import asyncio
import json
import logging
import socket

import click

from app.access.posture import check_host, check_sockets
from app.api.context import correlation_id
from app.api.hosts import Hosts
from app.api.origins import Origins
from app.cli.migrate import bring_up_to_date
from app.cli.options import settings_options, warn_of_secrets
from app.cli.starting import tell
from app.errors import BusError
from app.outbound import contract
from app.outbound.buses import kafka_bus
from app.outbound.compacted import CompactedTopic
from app.outbound.consul import warn_without_sweep
from app.runtime import log
from app.runtime.database import look_at, own_database
from app.runtime.processes import export, run, server_tls
from app.runtime.sockets import listening, shown
from app.settings import LogFormat, Posture, Settings, read_settings

logger = logging.getLogger(__name__)


@click.command()
@settings_options(*Settings.model_fields)
def serve(**given: str | None) -> None:
    """Answer requests.

    Without a database URL the service starts a PostgreSQL of its own, in the data directory. On an address that other
    machines reach it starts only where PQS_AUTH says who is let in.
    """
    settings = read_settings(given)
    log.configure(settings.log_level, settings.log_format, correlation_id.get, role="serve")
    warn_of_secrets(given)
    routes = contract.routes_of(settings)
    check_host(settings.auth, settings.host, settings.port)
    # Refused here once, before anything listens, and not by every worker.
    Hosts.of(settings.allowed_hosts, settings.host)
    Origins.of(settings.cors_origins, public_url=settings.public_url)
    server_tls(settings)  # raises here, before anything starts
    try:
        with listening(settings.host, settings.port, settings.workers) as sockets, own_database(settings) as url:
            check_sockets(settings.auth, sockets)  # a name may have other addresses by now
            if settings.database_url is None:
                asyncio.run(bring_up_to_date(url))
            else:
                asyncio.run(look_at(url, settings))
            asyncio.run(_look_at_topic(settings))
            if settings.database_read_url is not None:
                asyncio.run(look_at(settings.database_read_url.get_secret_value(), settings, writes=False))
            export(settings.model_copy(update={"database_url": url}))
            contract.log_what_is_off(routes)  # once, not in every worker
            warn_without_sweep(settings)
            asyncio.run(tell(settings, url, [shown(each) for each in sockets]))
            _announce(settings, sockets[0])
            run(settings, sockets)
    except KeyboardInterrupt:
        log.say("stopped", settings.log_format, "stopped")


async def _look_at_topic(settings: Settings) -> None:
    """Raises StartError for a topic of snapshots that is not compacted. A Kafka that is away is no obstacle."""
    if settings.topic_snapshots is None or not settings.snapshots:
        return
    topic = CompactedTopic(settings.topic_snapshots, settings, kafka_bus(settings))
    try:
        await topic.look()
    except BusError as error:
        logger.warning("snapshots wait: %s", error)
    finally:
        await topic.close()


def _announce(settings: Settings, listener: socket.socket) -> None:
    base = f"{'https' if settings.tls_cert else 'http'}://{shown(listener)}"
    if settings.log_format is LogFormat.JSON:
        log.say(f"serving on {base}", settings.log_format, "serving")
        return
    key = hint = ""
    if settings.auth is Posture.REQUIRED:
        key = '-H "Authorization: Bearer $PQS_TOKEN" '
        scopes = "--scope events:write --scope entities:read --domain example"
        hint = f"  export PQS_TOKEN=$(pqs keys create me {scopes})\n"
    event = {
        "event_id": "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1d01",
        "type": "registration.initiated",
        "entity_id": "7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a",
        "domain": "example",
        "position": {"sequence": 1},
        "occurred_at": "2026-01-01T00:00:00Z",
        "data": {"node_type": "compute"},
    }
    log.say(
        f"serving on {base}, docs on {base}/docs\n\n{hint}"
        f"  curl {key}{base}/v1/events -H content-type:application/json -d '{json.dumps(event)}'\n"
        f"  curl {key}'{base}/v1/entities/{event['entity_id']}?domain=example'\n"
        f"  curl {key}'{base}/v1/state-counts?domain=example'\n",
        settings.log_format,
        "serving",
    )
