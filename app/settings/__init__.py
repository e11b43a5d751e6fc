"""The settings of the service, from the environment and the command line."""

from app.settings.contradictions import PREFIX
from app.settings.secret_settings import SECRETS, secrets_in
from app.settings.settings import Settings, address_of, read_settings, secret_of
from app.settings.types import (
    AccessLogging,
    BusKind,
    ConsoleMode,
    DeadLetterRule,
    Foreign,
    Gaps,
    KafkaSecurity,
    LogFormat,
    LogLevel,
    Posture,
    Tracks,
)

__all__ = [
    "PREFIX",
    "SECRETS",
    "AccessLogging",
    "BusKind",
    "ConsoleMode",
    "DeadLetterRule",
    "Foreign",
    "Gaps",
    "KafkaSecurity",
    "LogFormat",
    "LogLevel",
    "Posture",
    "Settings",
    "Tracks",
    "address_of",
    "read_settings",
    "secret_of",
    "secrets_in",
]
