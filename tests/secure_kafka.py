"""The secure listeners of a real Kafka, started by `tests/kafka/run --secure`: working settings, and its users."""

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from app.settings import Settings, read_settings
from tests.broker import PATIENCE

HAS_SECURE_KAFKA = pytest.mark.skipif(
    "TEST_KAFKA_SECURE" not in os.environ, reason="tests/kafka/run --secure gives a Kafka with secure listeners"
)
PLAIN_USER, PLAIN_PASSWORD = "pqs", "pqs-password"
LISTENERS = (
    ("ssl", None),
    ("sasl_ssl", "PLAIN"),
    ("sasl_ssl", "SCRAM-SHA-512"),
    ("sasl_plaintext", "PLAIN"),
    ("sasl_plaintext", "SCRAM-SHA-256"),
)
REAUTHENTICATED = 6.0  # seconds after which every SASL client has proved again who it is


@dataclass
class Access:
    """Access to the Kafka; `given` are its settings, `password` is the file with the password."""

    given: dict[str, str]
    password: Path
    mechanism: str | None

    def settings(self, **more: str) -> Settings:
        """The settings with more settings added; an empty one is left out."""
        return read_settings({name: value for name, value in (self.given | more).items() if value})

    def rotate(self) -> None:
        """Give the user another password, at the broker and in the file."""
        assert self.mechanism is not None
        password = f"secret-{uuid4().hex}"
        set_password(self.given["kafka_username"], self.mechanism, password)
        self.password.write_text(password)


def access(security: str, mechanism: str | None, folder: Path) -> Access:
    """Access through a listener, for a new user."""
    secure = Path(os.environ["TEST_KAFKA_SECURE"])
    given = {"kafka": os.environ[f"TEST_KAFKA_{security.upper()}"], "kafka_security": security}
    password = folder / "password"
    if security.endswith("ssl"):
        given["kafka_ca"] = str(secure / "ca.pem")
    if security == "ssl":
        given |= {"kafka_cert": str(secure / "client.pem"), "kafka_key": str(secure / "client.key")}
    found = Access(given, password, mechanism)
    if mechanism is not None:
        user = PLAIN_USER if mechanism == "PLAIN" else f"user-{uuid4().hex}"
        given |= {"kafka_mechanism": mechanism, "kafka_username": user, "kafka_password_file": str(password)}
        if mechanism == "PLAIN":
            password.write_text(PLAIN_PASSWORD)
        else:
            found.rotate()
    return found


def set_password(user: str, mechanism: str, password: str) -> None:
    """Set the password of a SCRAM user."""
    kind = ScramMechanism[mechanism.replace("-", "_")]
    change = UserScramCredentialUpsertion(user, ScramCredentialInfo(kind, 4096), password.encode())
    admin = AdminClient({"bootstrap.servers": os.environ["TEST_KAFKA"]})
    [done] = admin.alter_user_scram_credentials([change]).values()
    done.result(PATIENCE)
