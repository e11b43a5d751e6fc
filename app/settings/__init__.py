"""The settings of the service, from the environment and the command line."""

from app.settings.settings import PREFIX, SECRETS, Settings, read_settings, secret_of, secrets_in
from app.settings.types import AccessLogging, BusKind, KafkaSecurity, LogFormat, LogLevel, Posture

__all__ = [
    "PREFIX",
    "SECRETS",
    "AccessLogging",
    "BusKind",
    "KafkaSecurity",
    "LogFormat",
    "LogLevel",
    "Posture",
    "Settings",
    "read_settings",
    "secret_of",
    "secrets_in",
]
