"""All settings: environment variables with the prefix PQS_. Entry points read them once and pass them on."""

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs
from pydantic import Field, SecretStr, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.changes import Logging
from app.errors import StartError
from app.settings.contradictions import PREFIX, contradictions
from app.settings.secret_files import Secret
from app.settings.secret_settings import SECRET_TYPES, with_secrets
from app.settings.types import (
    ALGORITHMS,
    DAY,
    AccessLogging,
    Address,
    Algorithms,
    BusKind,
    ConsoleMode,
    ConsulAddress,
    ConsulMark,
    ConsulPaths,
    DeadLetterRule,
    Duration,
    EventSource,
    File,
    Foreign,
    Gaps,
    HostList,
    IssuerAddress,
    KafkaOptions,
    KafkaSecurity,
    LogFormat,
    LogLevel,
    OriginList,
    Password,
    Posture,
    PublicUrl,
    ScopesMap,
    Servers,
    Topic,
    Topics,
    Tracks,
    Word,
)

# Variables of clients, most commands of `pqs` among them, and not of the service.
OF_CLIENTS = {"PQS_TOKEN", "PQS_TOKEN_FILE", "PQS_URL"}
MIB = 1024 * 1024  # bytes


class Settings(BaseSettings):
    """All settings. Durations are numbers of seconds, sizes numbers of bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="The address to listen on; `pqs load` sends to it.")
    port: int = Field(
        8000, ge=0, le=65_535, description="The port to listen on, 0 for a free one; `pqs load` sends to it."
    )
    workers: int = Field(1, ge=1, le=256, description="The number of processes that answer requests.")
    database_url: Address | None = Field(
        None,
        description="The PostgreSQL, as postgresql://user@host/name. Without it the service starts its own.",
    )
    database_read_url: Address | None = Field(
        None, description="A replica of that PostgreSQL, which answers lists, counts and scans."
    )
    read_max_lag: Duration | None = Field(
        None,
        description="The seconds that the replica may lag; beyond, the primary answers. Without it, the primary "
        "answers overdue scans, and the replica the rest, however far it lags.",
    )
    data_dir: File = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("pqs")),
        description="The folder in which the service's own PostgreSQL keeps its data.",
    )
    pool_size: int = Field(8, ge=1, le=1000, description="The most database connections that a process opens.")
    statement_timeout: float = Field(
        5.0, ge=0.001, le=3600, description="The seconds after which a statement is cancelled."
    )
    ack_timeout: Duration = Field(30.0, description="The seconds in which a node has to acknowledge.")
    liveness_interval: Duration = Field(
        60.0, description="The seconds in which a node has to send a heartbeat after its activation."
    )
    liveness_window: Duration = Field(90.0, description="The seconds in which a node has to send the next heartbeat.")
    max_body: int = Field(
        8 * MIB, ge=1024, le=1024 * MIB, description="The largest request body, in bytes; NDJSON may be longer."
    )
    body_memory: int = Field(
        256 * MIB,
        ge=1024,
        le=1024 * 1024 * MIB,
        description="How many bytes of request bodies a process holds at most, and never less than twice "
        "PQS_MAX_BODY; one address has half of them.",
    )
    batching: bool = Field(True, description="Join concurrent single requests into one statement.")
    sweep: bool = Field(
        False,
        description="Turn passed deadlines into events within the service. `pqs sweep` does so whatever this says.",
    )
    action_retention: Duration = Field(
        7 * DAY, description="The seconds for which an action of a workflow is kept at least."
    )
    kafka: Servers | None = Field(None, description="Kafka's bootstrap servers, as host:port,host:port.")
    bus: BusKind = Field(
        default_factory=lambda given: BusKind.KAFKA if given.get("kafka") else BusKind.OFF,
        description="The bus for outgoing events: kafka (the default if PQS_KAFKA is set), memory, or off (else).",
    )
    relay: bool = Field(
        True, description="Send outgoing messages from within the service; otherwise run `pqs relay`."
    )
    topic_out: Topic = Field("registration-events", description="The topic to which registration events are sent.")
    topic_snapshots: Topic | None = Field(
        None,
        description="The compacted topic to which the whole row is published when it changes; see `pqs snapshots`.",
    )
    snapshots: bool = Field(
        True,
        description="Publish snapshots from within the service, where PQS_TOPIC_SNAPSHOTS is set; otherwise run "
        "`pqs snapshots`.",
    )
    snapshots_drop_expired: bool = Field(
        False, description="Publish a tombstone, in place of the row, for a node whose liveness has expired."
    )
    source: EventSource = Field(
        "urn:pqs", description="The `source` of the CloudEvents that are sent: with the id it identifies an event."
    )
    topics_in: Topics | None = Field(
        None,
        description="The topics that `pqs consume` reads, as topic,topic; a pattern begins with ^, as ^nodes-.*. All "
        "events of a node must be in one topic.",
    )
    tracks: Tracks = Field(
        Tracks.STRICT,
        description="What becomes of a message whose node stands on another partition: `strict` (a conflict), or "
        "`follow` (the node moves there, if the message is not older than its last event).",
    )
    gaps: Gaps = Field(
        Gaps.SKIP,
        description="What `pqs consume` does when Kafka removed messages before they were read: skip or stop.",
    )
    foreign: Foreign = Field(
        Foreign.SKIP,
        description="What becomes of messages that are not events (without a value, or of a type that is not ours): "
        "skip or dead_letter.",
    )
    dead_letters: DeadLetterRule = Field(
        DeadLetterRule.HOLD,
        description="What becomes of a node's later messages when one that is not a heartbeat is a dead letter: "
        "`hold` (they wait behind it), or `pass`.",
    )
    consumer_id: Word | None = Field(
        None, description="The static id of this consumer in its group: a restart within 10 s moves no partition."
    )
    max_skew: float = Field(
        300.0,
        ge=0,
        le=10_000 * 365 * DAY,
        description="How many seconds an event may be ahead of the database's clock.",
    )
    consumer_group: str = Field(
        "pqs",
        min_length=1,
        max_length=249,
        description="The consumer group of `pqs consume`; its members share the partitions.",
    )
    consul_url: ConsulAddress | None = Field(
        None, description="The Consul agent, as http://host:8500, at which nodes are registered."
    )
    log_level: LogLevel = Field(LogLevel.INFO, description="How much is logged: debug, info, warning or error.")
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="The form of a log line: console or json.")
    access_log: AccessLogging = Field(
        AccessLogging.PROBLEMS,
        description="The requests that have a line in the log: problems (5xx, slow and sampled ones), all, or off.",
    )
    slow: float = Field(
        1.0,
        ge=0.000_001,
        le=3600,
        description="The seconds after which a request or a statement counts as slow, and is logged.",
    )
    trace_limit: int = Field(
        100,
        ge=0,
        le=100_000,
        description="The most traces a second that this process begins, where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="The port at which `pqs consume`, `relay`, `sweep` and `snapshots` answer /livez, /readyz and "
        "/metrics, 0 for a free one; without it they listen on nothing.",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="The address on which they listen; beyond loopback PQS_AUTH must say who is let in."
    )
    drain: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="The seconds between SIGTERM and the stop, in which `/readyz` says 503 and all else is answered.",
    )

    max_connections: int = Field(
        10_000,
        ge=8,
        le=1_000_000,
        description="How many clients' connections a process keeps open at most; one address has a quarter of them.",
    )
    public_url: PublicUrl | None = Field(
        None,
        description="Where a proxy serves this service, as https://host/prefix; for OpenAPI, and for its own pages.",
    )
    console: ConsoleMode = Field(
        ConsoleMode.ON, description="The pages at `/ui`: on, read-only (they change nothing), or off."
    )
    # Who is let in, and over which wires.
    auth: Posture = Field(
        Posture.LOOPBACK,
        description="Who is let in: `loopback` (anybody on this machine; other addresses are refused), `required` "
        "(callers with a key or token), `insecure` (anybody).",
    )
    allowed_hosts: HostList | None = Field(
        None, description="The names in `Host` that are answered, as a.example,b.example; `*` for all."
    )
    cors_origins: OriginList | None = Field(
        None, description="The origins whose pages may call the service, as https://a.example,https://b.example."
    )
    oidc_issuer: IssuerAddress | None = Field(
        None, description="The OpenID Connect issuer whose tokens are accepted, to the letter; needs the extra oidc."
    )
    oidc_audience: Word | None = Field(None, description="The audience that its tokens must name.")
    oidc_algorithms: Algorithms = Field(
        ",".join(ALGORITHMS), description="The signature algorithms that are accepted, as RS256,ES256."
    )
    oidc_scopes_claim: Word = Field(
        "scope", description="The claim with the scopes, text or list; dots lead into objects: realm_access.roles."
    )
    oidc_scopes_map: ScopesMap | None = Field(
        None,
        description="What the issuer's names grant, as name=scope,name=scope; no other name grants anything then.",
    )
    oidc_domains_claim: Word | None = Field(
        None, description="The claim with the domains of a caller; without this setting a token covers all domains."
    )
    oidc_prefixes_claim: Word | None = Field(
        None,
        description="The claim with the workflow prefixes of a caller, `*` for all; without this setting a token "
        "covers all workflows.",
    )
    oidc_client_id: Word | None = Field(
        None, description="The client as which people sign in to the console; it comes back to `/ui/oidc/back`."
    )
    oidc_client_secret: Password | None = Field(None, description="Its secret; a public client has none.")
    oidc_client_secret_file: File | None = Field(None, description="A file that holds PQS_OIDC_CLIENT_SECRET.")
    oidc_client_scope: str = Field("openid", max_length=1000, description="The scope that the console asks for.")
    oidc_leeway: float = Field(
        30.0, ge=0, le=300, description="How many seconds the issuer's clock may differ from this one."
    )
    tls_cert: File | None = Field(
        None, description="The service's certificate with its chain, a PEM file; taken over when it changes."
    )
    tls_key: File | None = Field(None, description="Its private key, a PEM file without a passphrase.")
    tls_client_ca: File | None = Field(
        None, description="The authorities of client certificates, a PEM file: clients must have one then."
    )
    database_url_file: File | None = Field(None, description="A file that holds PQS_DATABASE_URL.")
    database_read_url_file: File | None = Field(None, description="A file that holds PQS_DATABASE_READ_URL.")
    kafka_security: KafkaSecurity = Field(
        KafkaSecurity.PLAINTEXT,
        description="How connections to Kafka are protected: plaintext, ssl, sasl_plaintext or sasl_ssl.",
    )
    kafka_mechanism: Word | None = Field(
        None, description="The SASL mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or GSSAPI."
    )
    kafka_username: Word | None = Field(None, description="The user name for PLAIN and SCRAM.")
    kafka_password: Password | None = Field(None, description="Its password; better in a file.")
    kafka_password_file: File | None = Field(None, description="A file that holds PQS_KAFKA_PASSWORD.")
    kafka_ca: File | None = Field(
        None, description="The authorities of the brokers' certificates, a PEM file; else the system's."
    )
    kafka_cert: File | None = Field(None, description="The client certificate for Kafka, a PEM file.")
    kafka_key: File | None = Field(None, description="Its private key, a PEM file.")
    kafka_options: KafkaOptions | None = Field(
        None, description="Further options of librdkafka, as name=value,name=value, for reading and writing."
    )
    kafka_options_file: File | None = Field(
        None, description="A file that holds PQS_KAFKA_OPTIONS; it is read at the start."
    )
    consul_token: Password | None = Field(
        None, description="The ACL token for Consul; without it CONSUL_HTTP_TOKEN counts. Better in a file."
    )
    consul_token_file: File | None = Field(None, description="A file that holds PQS_CONSUL_TOKEN.")
    consul_ca: File | None = Field(
        None,
        description="The authorities of Consul's certificate, a PEM file; without it CONSUL_CACERT counts, else the "
        "system's.",
    )
    consul_cert: File | None = Field(None, description="The client certificate for Consul, a PEM file.")
    consul_key: File | None = Field(None, description="Its private key, a PEM file.")
    consul_namespace: Word | None = Field(None, description="The namespace in which Consul registers nodes.")
    consul_datacenter: Word | None = Field(None, description="Consul's datacenter, where it is not the agent's own.")
    consul_mark: ConsulMark = Field(
        "pqs",
        description="The mark of this installation, in the Meta of its services; each one at a Consul needs its own.",
    )
    consul_address_from: ConsulPaths = Field(
        "address,port", description="The paths of address and port in a node's capabilities; or one, to host:port."
    )
    consul_ttl: float = Field(90.0, ge=1, le=DAY, description="The seconds until a check that is not renewed fails.")
    consul_remove_after: float = Field(
        600.0, ge=60, le=DAY, description="The seconds until Consul removes a service whose check has failed."
    )
    consul_reconcile: float = Field(
        60.0, ge=0.1, le=DAY, description="The seconds between two comparisons of Consul's services with the rows."
    )
    changes: Logging = Field(
        Logging.TRANSITIONS,
        description="The events that the change log has: transitions (of states, and triggers), all, or off.",
    )
    changes_rows: bool = Field(False, description="Log the whole row with each change.")
    changes_keep: Duration = Field(7 * DAY, description="The seconds for which a change is kept at least.")
    followers: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="The most requests that follow the changes, or wait for a read, in one process.",
    )

    @field_validator("bus")
    @classmethod
    def _kafka_has_servers(cls, bus: BusKind, info: ValidationInfo) -> BusKind:
        if bus is BusKind.KAFKA and not info.data.get("kafka"):
            raise ValueError("kafka needs PQS_KAFKA, the bootstrap servers")
        return bus


def read_settings(given: Mapping[str, object] | None = None) -> Settings:
    """The settings: from `given` (unless None), then the environment, then the defaults.

    Raises StartError, which names the variable, for an unknown name and for a value out of range.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OF_CLIENTS
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            endings = [each.removeprefix(PREFIX) for each in known]
            near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), endings, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            raise StartError(f"there is no setting {name}{hint} (`pqs serve --help` lists them)")
    try:
        settings = Settings.model_validate(with_secrets(given or {}))
    except ValidationError as error:
        wrong = [
            f"{PREFIX}{str(each['loc'][0]).upper()}: {each['msg']}"
            for each in error.errors()
            if each["type"] != "default_factory_not_called"  # a consequence of another error
        ]
        raise StartError("; ".join(wrong).replace("Value error, ", "")) from None
    if wrong := contradictions(settings):
        raise StartError("; ".join(wrong))
    return settings


def secret_of(settings: Settings, name: str) -> Secret:
    """One of SECRETS, read again when its file changes. Raises StartError when the file cannot be read."""
    value: SecretStr | None = getattr(settings, name)
    check: Callable[[str], object] = TypeAdapter(SECRET_TYPES[name]).validate_python
    return Secret(value.get_secret_value() if value else None, getattr(settings, f"{name}_file"), check)


def address_of(settings: Settings, name: str, otherwise: Callable[[], str]) -> Callable[[], str]:
    """The address as it is at each call: a file that holds it is read again when it has changed."""
    secret = secret_of(settings, name)
    return lambda: secret() or otherwise()
