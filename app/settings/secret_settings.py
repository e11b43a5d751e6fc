"""Which settings hold a secret; each may come from a file, and none from two places."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from app.errors import StartError
from app.settings.contradictions import PREFIX
from app.settings.secret_files import read_secret
from app.settings.types import SECRET_OPTION, Address, KafkaOptions, Password

# Settings that hold a secret. Each has a form with _FILE, and neither may be given beside the other.
SECRET_TYPES = {
    "database_url": Address,
    "database_read_url": Address,
    "kafka_password": Password,
    "kafka_options": KafkaOptions,
    "consul_token": Password,
    "oidc_client_secret": Password,
}
SECRETS = tuple(SECRET_TYPES)


def secrets_in(given: Mapping[str, object]) -> list[str]:
    """A warning for each secret among the options of a command line: everybody on the machine can read those."""
    return [
        f"--{name.replace('_', '-')} shows a secret to everybody on this machine; set {PREFIX}{name.upper()}_FILE"
        for name in SECRETS
        if given.get(name) is not None and _shows_a_secret(name, str(given[name]))
    ]


def _shows_a_secret(name: str, value: str) -> bool:
    if name == "kafka_options":
        return SECRET_OPTION.search(value) is not None
    if not name.endswith("url"):
        return True
    with suppress(ValueError):
        return urlsplit(value).password is not None or "password=" in value
    return True


def with_secrets(given: Mapping[str, object]) -> dict[str, object]:
    """What is given, with the content of each file that holds a secret. Raises StartError for a secret set twice."""
    result = {name: value for name, value in given.items() if value is not None}
    environment = {name.upper(): value for name, value in os.environ.items()}
    for name in SECRETS:
        file = f"{name}_file"
        path = result.get(file, environment.get(PREFIX + file.upper()))
        if path is None or path == "":
            continue
        if name in result or PREFIX + name.upper() in environment:
            variable = PREFIX + name.upper()
            raise StartError(f"{variable}: set it or {variable}_FILE, not both")
        try:
            result[name] = read_secret(Path(str(path)))
        except StartError as error:
            raise StartError(f"{PREFIX}{file.upper()}: {error}") from None
    return result
