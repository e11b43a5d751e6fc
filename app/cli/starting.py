"""The line with which a process starts: what it is, what it works with, and which part of that cannot work."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from urllib.parse import urlsplit

from app.errors import StartError, UnavailableError
from app.settings import Settings, secret_of
from app.store.database import Database

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds for a part to answer; it is named if it does not


async def tell(settings: Settings, url: str, listeners: Sequence[str] = ()) -> None:
    """Log the start line, and a warning for each part that does not work now. The start goes on in any case."""
    parts = {"database": _database(url)}
    if settings.database_read_url is not None:
        replica = secret_of(settings, "database_read_url")
        parts["read database"] = _database(replica() or url)
    if settings.kafka is not None:
        parts["Kafka"] = _one_of(settings.kafka.split(","))
    if settings.consul_url is not None:
        parts["Consul"] = _one_of([_consul_address(settings.consul_url.get_secret_value())])
    answers = dict(zip(parts, await asyncio.gather(*parts.values()), strict=True))
    trouble = {part: answer for part, answer in answers.items() if isinstance(answer, Exception)}
    revision = answers["database"]
    told = {
        "version": version("projection-query-service"),
        "database": without_password(url),
        "revision": None if isinstance(revision, Exception) else revision,
        "listeners": ", ".join(listeners) or "none",
        "sweep": settings.sweep,
        "relay": settings.relay,
        "kafka": settings.kafka or "off",
        "consul": "off" if settings.consul_url is None else without_password(settings.consul_url.get_secret_value()),
        "auth": settings.auth.value,
    }
    text = ", ".join(f"{name} {'unknown' if value is None else value}" for name, value in told.items())
    log.info("starting: %s", text, extra={"event": "starting", **told})
    for part, error in trouble.items():
        log.warning("%s cannot work now: %s", part, error, extra={"event": "part.unusable", "part": part})


async def kafka_trouble(settings: Settings) -> str | None:
    """Why no server of Kafka can be reached; None if one accepts connections, or if none is set."""
    found = await _one_of(settings.kafka.split(",")) if settings.kafka is not None else ""
    return f"Kafka: {found}" if isinstance(found, Exception) else None


async def consul_trouble(settings: Settings) -> str | None:
    """Why Consul cannot be reached; None if it accepts connections, or if none is set."""
    url = settings.consul_url
    found = await _one_of([_consul_address(url.get_secret_value())]) if url is not None else ""
    return f"Consul: {found}" if isinstance(found, Exception) else None


def _consul_address(url: str) -> str:
    consul = urlsplit(url)
    return f"{consul.hostname}:{consul.port or (443 if consul.scheme == 'https' else 80)}"


def without_password(address: str) -> str:
    """An address without the password, and without the options after its path."""
    parts = urlsplit(address)
    name, _, place = parts.netloc.rpartition("@")
    user = name.partition(":")[0]
    return f"{parts.scheme}://{user}{'@' if user else ''}{place}{parts.path}"


async def _database(url: str) -> str | Exception:
    """The revision of a database's schema, or why it cannot be used."""
    async with _opened(url) as database:
        try:
            async with asyncio.timeout(PATIENCE):
                return await database.check()
        except (UnavailableError, StartError) as error:
            return error
        except TimeoutError:
            return UnavailableError(f"it did not answer within {PATIENCE:g} s")


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Database]:
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=PATIENCE))
    try:
        yield database
    finally:
        await database.close()


async def _one_of(addresses: Sequence[str]) -> str | Exception:
    """An address that accepts connections, or why none does."""
    failure: Exception = OSError("no address is set")
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(PATIENCE):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
        except (OSError, ValueError, TimeoutError) as error:
            failure = OSError(f"{address} does not accept connections: {str(error) or 'no answer'}")
        else:
            return address
    return failure
