"""Sessions: how a connection is opened from an address, and what every session is set to.

Settings are made by SET after connecting, because a pooler refuses start-up parameters that it does not know.
"""

import asyncio
import functools
import shlex
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from uuid import uuid4

import asyncpg

from app.errors import DatabaseRefusesError
from app.store.failures import BROKEN, POOLED_BY_TRANSACTION, STRAY_SESSION, not_connected

OTHER_WAIT = 1.0  # seconds for a second session, when a pooler is looked at
CONNECT_WAIT = 2.0  # seconds to open a connection, all hosts of the address together

# Parameters of an address that the driver knows.
_DRIVERS = frozenset(
    {
        *("host", "port", "dbname", "database", "user", "password", "passfile"),
        *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslnegotiation", "sslcrl", "sslpassword"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib"),
    }
)
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
# Parameters that only libpq knows, with the values that change nothing here. Others are refused.
_WITHOUT_EFFECT = {
    "channel_binding": {"disable", "prefer"},
    "gssencmode": {"disable", "prefer"},
    "gssdelegation": {"0"},
    "load_balance_hosts": {"disable"},
    "sslcompression": {"0"},
    "sslsni": {"1"},
    "client_encoding": {"utf8", "utf-8", "auto"},
    "replication": {"false", "off", "no", "0"},
}
_LIBPQ_ONLY = frozenset(
    {
        *("hostaddr", "require_auth", "requirepeer", "requiressl", "service", "servicefile", "sslcertmode"),
        *("sslcrldir", "sslkeylogfile", "max_protocol_version", "min_protocol_version", "scram_client_key"),
        *("scram_server_key", "oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
    }
)
# Parameters of libpq that are options of the socket, with their units in one unit of the option.
_KEEPALIVES = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",  # milliseconds in both
}

_SINCE = {"idle_session_timeout": 14, "transaction_timeout": 17}  # settings, by the release that brought them

# Makes the settings of a session, and says which process of the server it is.
SET = """
SELECT pg_backend_pid(), count(set_config(setting.name, setting.value, false))
FROM unnest($1::text[], $2::text[]) AS setting (name, value)
"""
# Marks a session, and reads the mark: whoever reads another's mark shares its session.
MARK = "SELECT set_config('pqs.session', $1, false)"
MARKED = "SELECT current_setting('pqs.session', true)"


class ServerAddress(NamedTuple):
    """An address: what the driver gets, a text for each host; the settings of sessions; and options of sockets."""

    hosts: tuple[str, ...]
    settings: Mapping[str, str]
    timeout: float
    socket_options: tuple[tuple[int, int, int], ...]


class Session(asyncpg.Connection):
    """A connection whose close never fails, and whose statements have names that no other process uses.

    A pool closes broken connections in tasks that nobody awaits. And behind a pooler that gives each transaction
    another session, two processes with equal names would get the rows of each other's statements.
    """

    is_pooled = False  # a pooler hands statements on to a process of the server

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the signature is asyncpg's
        """Close, even if the server is gone."""
        with suppress(*BROKEN):
            await super().close(timeout=timeout)

    def _get_unique_id(self, prefix: str) -> str:
        name: str = super()._get_unique_id(prefix)  # type: ignore[misc]  # the stubs leave it out
        return f"{_process()}{name}"


@functools.cache
def _process() -> str:
    """What the names of this process begin with."""
    return f"pqs_{uuid4().hex[:16]}"


def libpq_address(url: str) -> str:
    """The address in the form that libpq and asyncpg accept."""
    return url.replace("postgresql+asyncpg://", "postgresql://", 1)


def parsed(url: str) -> ServerAddress:
    """What an address means. Raises DatabaseRefusesError, which names it, for a parameter that cannot be honoured."""
    parts = urlsplit(libpq_address(url))
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in _FILES:
        _check_file(name, given.get(name))
    kept = {name: given.pop(name) for name in list(given) if name in _DRIVERS}
    for name, harmless in _WITHOUT_EFFECT.items():
        if (value := given.pop(name, None)) is not None and value.lower() not in harmless:
            raise DatabaseRefusesError(f"the address of the database asks for {name}={value}, which is not supported")
    for name in given:
        if name in _LIBPQ_ONLY:
            raise DatabaseRefusesError(f"the address of the database names {name}, which only libpq knows")
    options = _socket_options(given)
    timeout = CONNECT_WAIT
    if (seconds := given.pop("connect_timeout", None)) is not None and _number("connect_timeout", seconds) > 0:
        timeout = float(seconds)
    settings = _options(given.pop("options", ""))
    if (application := given.pop("fallback_application_name", None)) is not None:
        settings["application_name"] = application
    settings |= given
    credentials, at, hosts = parts.netloc.rpartition("@")
    query = urlencode(kept, quote_via=quote)
    texts = (parts._replace(netloc=credentials + at + host, query=query).geturl() for host in hosts.split(","))
    return ServerAddress(tuple(texts), settings, timeout, options)


def _check_file(name: str, path: str | None) -> None:
    if path is None or (name == "sslrootcert" and path == "system"):
        return
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise DatabaseRefusesError(
            f"the file {path}, which the address of the database names as {name}, cannot be read: {error.strerror}"
        ) from None


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DatabaseRefusesError(
            f"the address of the database names {name}={text}; a whole number was expected"
        ) from None


def _socket_options(given: dict[str, str]) -> tuple[tuple[int, int, int], ...]:
    """The options of sockets among the parameters, which are taken off."""
    found = []
    if (alive := given.pop("keepalives", None)) is not None:
        found.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, min(1, _number("keepalives", alive))))
    for name, option in _KEEPALIVES.items():
        if (value := given.pop(name, None)) is None:
            continue
        number = _number(name, value)
        if number > 0 and hasattr(socket, option):  # 0 is the system's own
            found.append((socket.IPPROTO_TCP, getattr(socket, option), number))
    return tuple(found)


def _options(text: str) -> dict[str, str]:
    """The settings in libpq's `options`: `-c name=value` or `--name=value`, each as often as wanted."""
    settings = {}
    words = iter(shlex.split(text))
    for word in words:
        setting = next(words, "") if word == "-c" else word.removeprefix("-c").removeprefix("--")
        name, is_there, value = setting.partition("=")
        if not is_there or not word.startswith("-"):
            raise DatabaseRefusesError("the address of the database has options other than -c name=value")
        settings[name.replace("-", "_")] = value
    return settings


async def connect(url: str, settings: Mapping[str, str], **options: Any) -> Session:
    """A new session with these settings, which go before those of the address. `options` are the driver's.

    Tries the hosts of the address in their order, each for its share of the time. Raises DatabaseRefusesError and
    the driver's errors.
    """
    address = parsed(url)
    share = address.timeout / len(address.hosts)
    *others, last = address.hosts
    for host in others:
        with suppress(OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched):
            return await _connect(host, address, settings, share, options)
    return await _connect(last, address, settings, share, options)


async def opened(url: str, settings: Mapping[str, str], **options: Any) -> Session:
    """The same, with a look at the pooler in front, if there is one. Raises this project's errors only."""
    try:
        connection = await connect(url, settings, **options)
        try:
            await check_pooler(connection, lambda: connect(url, settings))
        except BaseException:
            connection.terminate()
            raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        raise not_connected(error) from error
    return connection


async def _connect(
    host: str, address: ServerAddress, settings: Mapping[str, str], seconds: float, options: dict[str, Any]
) -> Session:
    connection: Session = await asyncpg.connect(
        host,
        timeout=seconds,
        connection_class=Session,
        max_cacheable_statement_size=0,  # none without a name of its own: see Session
        **options,
    )
    try:
        transport = connection._transport  # type: ignore[attr-defined]  # noqa: SLF001 - asyncpg has no other way
        its_socket = transport.get_extra_info("socket")
        if its_socket is not None and its_socket.family != socket.AF_UNIX:
            for option in address.socket_options:
                its_socket.setsockopt(*option)
        wanted = {**address.settings, **settings}
        for name, since in _SINCE.items():
            if connection.get_server_version() < (since,):
                wanted.pop(name, None)
        async with asyncio.timeout(seconds):
            pid = await connection.fetchval(SET, list(wanted), list(wanted.values()))
        connection.is_pooled = pid != connection.get_server_pid()
    except BaseException:
        connection.terminate()
        raise
    return connection


async def check_pooler(connection: Session, other: Callable[[], Any]) -> None:
    """Raise DatabaseRefusesError if a pooler gives each transaction another session.

    `other` opens a second connection to the same address. While that is within a transaction, both must keep a mark
    of their own.
    """
    if not connection.is_pooled:
        return
    mark = uuid4().hex
    try:
        await connection.fetchval(MARK, mark)
        try:
            async with asyncio.timeout(OTHER_WAIT):
                second: Session = await other()
        except (TimeoutError, asyncpg.PostgresError):  # each session has a connection of the server for itself
            return
        try:
            async with second.transaction():
                shared = await second.fetchval(MARKED) == mark
                shared = shared or await connection.fetchval(MARKED) != mark
        finally:
            await second.close(timeout=OTHER_WAIT)
    except STRAY_SESSION:
        shared = True
    except asyncpg.PostgresConnectionError as error:
        if "transaction" not in str(error):  # "transaction blocks not allowed in statement pooling mode"
            raise
        shared = True
    if shared:
        raise DatabaseRefusesError(POOLED_BY_TRANSACTION)
