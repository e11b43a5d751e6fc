"""Settings that do not go together."""

from typing import TYPE_CHECKING

from app.domain.changes import Logging

if TYPE_CHECKING:
    from app.settings.settings import Settings

PREFIX = "PQS_"

# A setting, and the one that it says nothing without.
_NEEDS = (
    ("read_max_lag", "database_read_url"),
    ("topic_snapshots", "kafka"),
    ("oidc_issuer", "oidc_audience"),
    ("oidc_audience", "oidc_issuer"),
    ("oidc_scopes_map", "oidc_issuer"),
    ("oidc_client_id", "oidc_issuer"),
    ("oidc_client_secret", "oidc_client_id"),
    ("oidc_domains_claim", "oidc_issuer"),
    ("oidc_prefixes_claim", "oidc_issuer"),
    ("tls_cert", "tls_key"),
    ("tls_key", "tls_cert"),
    ("tls_client_ca", "tls_cert"),
    ("kafka_username", "kafka_mechanism"),
    ("kafka_password", "kafka_username"),
    ("kafka_cert", "kafka_key"),
    ("kafka_key", "kafka_cert"),
    ("consul_cert", "consul_key"),
    ("consul_key", "consul_cert"),
    ("consul_token", "consul_url"),
    ("consul_ca", "consul_url"),
    ("consul_cert", "consul_url"),
    ("consul_namespace", "consul_url"),
    ("consul_datacenter", "consul_url"),
)
_WITH_PASSWORD = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}  # mechanisms of SASL


def contradictions(settings: "Settings") -> list[str]:
    """What does not go together, each with its variable."""
    wrong = [
        f"{PREFIX}{name.upper()} needs {PREFIX}{needed.upper()}"
        for name, needed in _NEEDS
        if getattr(settings, name) is not None and getattr(settings, needed) is None
    ]
    wrong += _kafka_contradictions(settings)
    if settings.topic_snapshots is not None:
        if settings.changes is Logging.OFF:
            wrong.append("PQS_TOPIC_SNAPSHOTS needs the change log: PQS_CHANGES must not be off")
        if settings.topic_snapshots == settings.topic_out:
            wrong.append(
                "PQS_TOPIC_SNAPSHOTS and PQS_TOPIC_OUT name the same topic: one is compacted, and one is not"
            )
    url = settings.consul_url.get_secret_value() if settings.consul_url else ""
    if url.startswith("http:"):
        wrong += [
            f"{PREFIX}{name.upper()} needs an https address in PQS_CONSUL_URL"
            for name in ("consul_ca", "consul_cert")
            if getattr(settings, name) is not None
        ]
    return wrong


def _kafka_contradictions(settings: "Settings") -> list[str]:
    security = settings.kafka_security
    wrong = []
    sasl, protected = security.startswith("sasl_"), security.endswith("ssl")
    if sasl and settings.kafka_mechanism is None:
        wrong.append(f"PQS_KAFKA_SECURITY={security} needs PQS_KAFKA_MECHANISM")
    if not sasl and settings.kafka_mechanism is not None:
        wrong.append(f"PQS_KAFKA_MECHANISM needs PQS_KAFKA_SECURITY=sasl_ssl or sasl_plaintext, not {security}")
    if sasl and settings.kafka_mechanism in _WITH_PASSWORD and settings.kafka_password is None:
        wrong.append(
            f"PQS_KAFKA_MECHANISM={settings.kafka_mechanism} needs PQS_KAFKA_USERNAME and PQS_KAFKA_PASSWORD_FILE"
        )
    wrong += [
        f"{PREFIX}{name.upper()} needs PQS_KAFKA_SECURITY=ssl or sasl_ssl, not {security}"
        for name in ("kafka_ca", "kafka_cert")
        if getattr(settings, name) is not None and not protected
    ]
    schemes = {server.partition("://")[0].lower() for server in (settings.kafka or "").split(",") if "://" in server}
    wrong += [
        f"PQS_KAFKA names {scheme}:// and PQS_KAFKA_SECURITY is {security}: set PQS_KAFKA_SECURITY={scheme}, or "
        "leave the scheme out"
        for scheme in sorted(schemes - {security.value})
    ]
    return wrong
