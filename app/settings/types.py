"""The types of the settings: what each may be, and what is said of one that is not."""

import re
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

DAY = 86_400  # seconds


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class AccessLogging(StrEnum):
    """Which requests have a line in the log."""

    PROBLEMS = "problems"
    ALL = "all"
    OFF = "off"


class LogFormat(StrEnum):
    """The form of a log line: for people, or JSON for machines."""

    CONSOLE = "console"
    JSON = "json"


class Posture(StrEnum):
    """Who is let in: anybody on this machine, only callers with a key or token, or anybody at all."""

    LOOPBACK = "loopback"
    REQUIRED = "required"
    INSECURE = "insecure"


class ConsoleMode(StrEnum):
    """What the pages at `/ui` offer: everything, everything but acts, or nothing at all."""

    ON = "on"
    READ_ONLY = "read-only"
    OFF = "off"


class KafkaSecurity(StrEnum):
    """How the connection to Kafka is protected: librdkafka's `security.protocol`."""

    PLAINTEXT = "plaintext"
    SSL = "ssl"
    SASL_PLAINTEXT = "sasl_plaintext"
    SASL_SSL = "sasl_ssl"


class BusKind(StrEnum):
    """The bus that events leave by."""

    KAFKA = "kafka"
    MEMORY = "memory"
    OFF = "off"


# A year at most, so that the deadline computed from any event's time lies before the year 10000.
Duration = Annotated[float, Field(gt=0, le=365 * DAY)]


_HOST = r"(\[[^]]*\]|[^][:,]*)(:\d*)?"
_HOSTS = re.compile(rf"{_HOST}(,{_HOST})*")


def _postgresql(url: SecretStr) -> SecretStr:
    """A libpq address. Raises ValueError, which does not quote it: the wrong part may be the password."""
    address = url.get_secret_value().replace("postgresql+asyncpg://", "postgresql://", 1)
    with suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in {"postgresql", "postgres"} and _HOSTS.fullmatch(parts.netloc.rpartition("@")[2]):
            return SecretStr(address)
    raise ValueError(
        "an address such as postgresql://user:password@host:5432/name was expected, with special characters in "
        "its parts percent-encoded, such as %2F and %40"
    )


Address = Annotated[SecretStr, AfterValidator(_postgresql)]


def _http(url: SecretStr) -> SecretStr:
    """An HTTP address. Raises ValueError, which does not quote it: it may hold a password."""
    with suppress(ValueError):
        parts = urlsplit(url.get_secret_value())
        if parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment:
            return SecretStr(url.get_secret_value().rstrip("/"))
    raise ValueError("an address such as http://127.0.0.1:8500 was expected")


HttpAddress = Annotated[SecretStr, AfterValidator(_http)]


def _public(url: str) -> str:
    _http(SecretStr(url))
    return url.rstrip("/")


PublicUrl = Annotated[str, AfterValidator(_public)]


def _without_user(url: SecretStr) -> SecretStr:
    """An address without user information: it would be sent, and shown in logs, as part of the address."""
    if urlsplit(url.get_secret_value()).username is not None:
        raise ValueError("user information in the address is refused; a token is set by PQS_CONSUL_TOKEN_FILE")
    return url


ConsulAddress = Annotated[HttpAddress, AfterValidator(_without_user)]
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}


def _issuer(url: str) -> str:
    """The issuer's address, to the letter: a token names it in the same letters."""
    with suppress(ValueError):
        parts = urlsplit(url)
        protected = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK_NAMES)
        if protected and parts.hostname and parts.username is None and not parts.query and not parts.fragment:
            return url
    raise ValueError("an address such as https://issuer.example/realm was expected (http is for loopback only)")


IssuerAddress = Annotated[str, AfterValidator(_issuer)]
# The names that Kafka allows for a topic.
_TOPIC = "[a-zA-Z0-9._-]{1,249}"
TOPIC_NAME = re.compile(_TOPIC)
_SERVER = r"([a-zA-Z_]+://)?([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?"


def _of_form(form: str, expected: str) -> AfterValidator:
    """Text that matches `form` completely; the error says what was `expected`."""

    def check(value: str) -> str:
        if re.fullmatch(form, value) is None:
            raise ValueError(f"{expected} expected, and not {value!r}")
        return value

    return AfterValidator(check)


Topic = Annotated[str, _of_form(_TOPIC, "a topic (up to 249 letters, digits, dots, underscores or hyphens) was")]


def _topics(value: str) -> str:
    """Topics, and patterns of topics, which begin with `^`."""
    for each in value.split(","):
        if not each.startswith("^"):
            if TOPIC_NAME.fullmatch(each) is None:
                raise ValueError(
                    "topics as topic,topic (letters, digits, dots, underscores, hyphens), or patterns as ^nodes-.*, "
                    f"were expected, and not {value!r}"
                )
            continue
        try:
            re.compile(each)
        except re.error as error:
            raise ValueError(f"{each!r} is not a pattern: {error}") from None
    return value


Topics = Annotated[str, AfterValidator(_topics)]


class Tracks(StrEnum):
    """What becomes of a message whose entity stands on another partition."""

    STRICT = "strict"  # a conflict: all events of an entity come from one partition
    FOLLOW = "follow"  # the entity moves to the message's partition, if the message is not older than its last event


class Gaps(StrEnum):
    """What a consumer does when messages were removed before it read them."""

    SKIP = "skip"
    STOP = "stop"


class DeadLetterRule(StrEnum):
    """What becomes of the later messages of an entity when one of its transitions is a dead letter."""

    HOLD = "hold"  # they wait behind it
    PASS = "pass"  # noqa: S105 - they are applied, and the letter is stale when it is retried


class Foreign(StrEnum):
    """What becomes of messages that are not events: tombstones, and types that are not ours."""

    SKIP = "skip"
    DEAD_LETTER = "dead_letter"


EventSource = Annotated[str, _of_form(r"[!-~]{1,1024}", "a URI reference of printable ASCII was")]
Servers = Annotated[str, _of_form(rf"{_SERVER}(,{_SERVER})*|", "servers as host:port,host:port were")]


ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")  # signatures of tokens; HS* would make a public key a secret
_ALGORITHM = "|".join(ALGORITHMS)
Algorithms = Annotated[
    str, _of_form(rf"({_ALGORITHM})(,({_ALGORITHM}))*", f"algorithms out of {', '.join(ALGORITHMS)} were")
]
ScopesMap = Annotated[
    str, _of_form(r"[^=,\s]+=[a-z]+:[a-z]+(,[^=,\s]+=[a-z]+:[a-z]+)*", "pairs as name=scope,name=scope were")
]
_ORIGIN = r"https?://([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?"
OriginList = Annotated[
    str, _of_form(rf"{_ORIGIN}(,{_ORIGIN})*|", "origins as https://console.example,https://host:8443 were")
]
_NAME = r"([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])"
HostList = Annotated[str, _of_form(rf"\*|{_NAME}(,{_NAME})*|", "host names as a.example,b.example, or *, were")]
Word = Annotated[str, _of_form(r"[!-~]{1,255}", "a word without blanks was")]
ConsulMark = Annotated[
    str, _of_form(r"[a-zA-Z0-9._-]{1,64}", "a mark (up to 64 letters, digits, dots, underscores or hyphens) was")
]
_PATH = r"[^.,\s]+(\.[^.,\s]+)*"
ConsulPaths = Annotated[str, _of_form(rf"{_PATH}(,{_PATH})?", "paths as address,port or network.endpoint were")]
# The options hold what nobody has thought of, and so perhaps a password: the error does not show them.
_OPTION = r"[a-z0-9_.]+=(\\.|[^\\,])*"


def _options(options: SecretStr) -> SecretStr:
    if re.fullmatch(rf"{_OPTION}(,{_OPTION})*|", options.get_secret_value()) is None:
        raise ValueError("options as name=value,name=value were expected, with \\, for a comma in a value")
    return options


# Options of librdkafka whose values nobody else may see, such as sasl.oauthbearer.client.secret and ssl.key.pem.
SECRET_OPTION = re.compile(r"(?i)(?:^|,)[a-z0-9_.]*(?:password|secret|jaas|oauthbearer\.config|key\.pem)[a-z0-9_.]*=")
KafkaOptions = Annotated[SecretStr, AfterValidator(_options)]


def _not_empty(path: object) -> object:
    if path == "":
        raise ValueError("a path was expected; it is empty")
    return path


def _some(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value().isprintable() or not secret.get_secret_value():
        raise ValueError("a secret of printable characters was expected")
    return secret


File = Annotated[Path, BeforeValidator(_not_empty)]
Password = Annotated[SecretStr, AfterValidator(_some)]
