"""The access to an agent: token, TLS, namespace and datacenter."""

import os
import ssl
from collections.abc import Callable, Mapping

from msgspec import Struct

from app.errors import StartError
from app.settings import Settings, secret_of


class Rights(Struct, frozen=True):
    """The access to an agent that requires it. `token` is called for each request, because it may change."""

    token: Callable[[], str | None] = lambda: None
    tls: ssl.SSLContext | None = None
    namespace: str | None = None
    datacenter: str | None = None


def rights_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> Rights:
    """The access by the settings; without them, by the environment variables of Consul's own tools.

    Raises StartError for unusable files.
    """
    token: Callable[[], str | None] = secret_of(settings, "consul_token")
    if settings.consul_token is None:
        usual = environment.get("CONSUL_HTTP_TOKEN") or None
        token = lambda: usual  # noqa: E731
    return Rights(token, _tls(settings, environment), settings.consul_namespace, settings.consul_datacenter)


def _tls(settings: Settings, environment: Mapping[str, str]) -> ssl.SSLContext | None:
    """The context for an https address with authorities or a certificate of its own; otherwise None."""
    if settings.consul_url is None or not settings.consul_url.get_secret_value().startswith("https:"):
        return None
    usual = environment.get("CONSUL_CACERT") or None
    authorities, variable = settings.consul_ca or usual, "PQS_CONSUL_CA" if settings.consul_ca else "CONSUL_CACERT"
    if authorities is None and settings.consul_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"{variable}: {authorities} holds no certificates: {error.strerror}") from None
    if settings.consul_cert is not None and settings.consul_key is not None:
        try:
            context.load_cert_chain(settings.consul_cert, settings.consul_key, password=_no_passphrase)
        except (OSError, ssl.SSLError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise StartError(
                f"PQS_CONSUL_CERT and PQS_CONSUL_KEY are not a certificate and its key: {said}"
            ) from None
    return context


def _no_passphrase() -> str:
    """Refuse a passphrase: without this function, OpenSSL would ask for it on the terminal."""
    raise ValueError("the key has a passphrase")
