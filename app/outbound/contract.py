"""The contract of intents: `contract.yaml`, and the check that every intent has a handler."""

import logging
from collections.abc import Collection, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

import msgspec
from msgspec import Struct

from app.domain.intents import INTENT_NAMES
from app.errors import StartError
from app.outbound import postgres
from app.outbound.consul import handler as consul
from app.settings import Settings

log = logging.getLogger(__name__)

OFF = "off"
# The intents that each handler can carry out.
ABLE: Mapping[str, Collection[str]] = {"postgres": postgres.INTENTS, "consul": consul.INTENTS}
# The variable that sets a resource. Without its variable, the database is the service's own.
SETTINGS: Mapping[str, str] = {"database": "PQS_DATABASE_URL", "consul": "PQS_CONSUL_URL"}


class Terms(Struct, frozen=True, forbid_unknown_fields=True):
    """What a handler needs, when it runs, and whether its intents are off without its needs."""

    needs: str
    runs: Literal["within", "after"]
    without: Literal["off"] | None = None


class Contract(Struct, frozen=True, forbid_unknown_fields=True):
    """The handlers by name, and the name of the handler of each intent."""

    handlers: dict[str, Terms]
    intents: dict[str, str]


class Route(Struct, frozen=True):
    """The handler of an intent (`off`: none), its needs, and whether it runs after the transaction."""

    intent: str
    handler: str
    needs: str
    after: bool


class _Written(Struct, forbid_unknown_fields=True):
    """A contract whose entries are not decoded yet, so that errors can name them."""

    handlers: dict[str, object]
    intents: dict[str, object]


def read_contract(file: Traversable | None = None) -> Contract:
    """The shipped contract, or that of another file. Raises StartError, with file and place, for an invalid one."""
    file = file or files("app.outbound").joinpath("contract.yaml")
    at = "$"
    try:
        written = msgspec.yaml.decode(file.read_bytes(), type=_Written)
        handlers: dict[str, Terms] = {}
        intents: dict[str, str] = {}
        for name, terms in written.handlers.items():
            at = f"$.handlers.{name}"
            handlers[name] = msgspec.convert(terms, Terms)
        for name, handler in written.intents.items():
            at = f"$.intents.{name}"
            intents[name] = msgspec.convert(handler, str)
    except (msgspec.DecodeError, ValueError) as error:
        # Errors of YAML have several lines.
        said = " ".join(str(error).split()).replace(' in "<byte string>",', " at")
        if isinstance(error, msgspec.ValidationError):
            said, _, place = said.partition(" - at ")
            said += f" at `{at}{place.strip('`').removeprefix('$')}`"
        if "`bool`" in said:
            said += '; in YAML an unquoted off is a bool: "off" is text'
        raise StartError(f"the contract of intents cannot be read: {file}: {said}") from None
    return Contract(handlers, intents)


def route(contract: Contract, present: Collection[str], emitted: Collection[str] = INTENT_NAMES) -> list[Route]:
    """The route of each intent that the decider can emit, given the resources that are present.

    Raises StartError, which names every intent whose handler is missing, can't carry it out, or lacks its needs, and
    every name in the contract that is not an intent.
    """
    routes: list[Route] = []
    wrong = [f"{name} is not an intent" for name in contract.intents if name not in emitted]
    for name in emitted:
        handler = contract.intents.get(name)
        terms = contract.handlers.get(handler or "")
        if handler is None:
            wrong.append(f"{name} has no handler")
        elif terms is None or name not in ABLE.get(handler, ()):
            wrong.append(f"{name} is routed to {handler}, which cannot carry it out")
        elif terms.needs in present:
            routes.append(Route(name, handler, terms.needs, terms.runs == "after"))
        elif terms.without == OFF:
            routes.append(Route(name, OFF, terms.needs, after=False))
        else:
            wrong.append(f"{name} is routed to {handler}, which lacks what it needs: {needed(terms.needs)}")
    if wrong:
        raise StartError(f"the contract of intents cannot be kept: {'; '.join(wrong)}")
    return routes


def routes_of(settings: Settings) -> list[Route]:
    """The routes of this service. Raises StartError like `route`."""
    present = {"database"} | ({"consul"} if settings.consul_url is not None else set())
    return route(read_contract(), present)


def log_what_is_off(routes: Collection[Route]) -> None:
    """Log one line per missing resource, with the intents that are not carried out."""
    off = [each for each in routes if each.handler == OFF]
    for resource in dict.fromkeys(each.needs for each in off):
        names = ", ".join(each.intent for each in off if each.needs == resource)
        log.info("%s is not set: these intents are not carried out: %s", needed(resource), names)


def after_the_transaction(routes: Collection[Route]) -> dict[str, str]:
    """The handlers of the intents that leave through the outbox, by intent."""
    return {each.intent: each.handler for each in routes if each.after}


def needed(resource: str) -> str:
    """A resource and the variable that sets it."""
    return f"{resource} ({SETTINGS.get(resource, 'which is not known')})"
