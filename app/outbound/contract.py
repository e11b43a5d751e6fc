"""The contract of intents: `contract.yaml`, and the check that what it promises can be kept."""

import logging
from collections.abc import Collection, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

import msgspec
from msgspec import Struct

from app.domain.intents import INTENTS
from app.errors import StartError
from app.outbound import consul, postgres
from app.settings import Settings

log = logging.getLogger(__name__)

OFF = "off"
# What each handler can carry out.
ABLE: Mapping[str, Collection[str]] = {"postgres": postgres.INTENTS, "consul": consul.INTENTS}
# The variable that brings a resource. The database is always there: without its variable it is the service's own.
SETTINGS: Mapping[str, str] = {"database": "PQS_DATABASE_URL", "consul": "PQS_CONSUL_URL"}


class Terms(Struct, frozen=True, forbid_unknown_fields=True):
    """What a handler needs, when it runs, and what becomes of its intents without what it needs."""

    needs: str
    runs: Literal["within", "after"]
    without: Literal["off"] | None = None


class Contract(Struct, frozen=True, forbid_unknown_fields=True):
    """The handlers by name, and the name of the handler of each intent."""

    handlers: dict[str, Terms]
    intents: dict[str, str]


class Route(Struct, frozen=True):
    """Who carries an intent out (`off`: nobody), what that needs, and whether it runs after the transaction."""

    intent: str
    handler: str
    needs: str
    after: bool


class _Written(Struct, forbid_unknown_fields=True):
    """A contract whose entries are still to be read, each by its name."""

    handlers: dict[str, object]
    intents: dict[str, object]


def read_contract(file: Traversable | None = None) -> Contract:
    """The contract as it is shipped, or another one. Raises StartError, with file and place, for what is none."""
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
        # What is said of YAML has several lines.
        said = " ".join(str(error).split()).replace(' in "<byte string>",', " at")
        if isinstance(error, msgspec.ValidationError):
            said, _, place = said.partition(" - at ")
            said += f" at `{at}{place.strip('`').removeprefix('$')}`"
        if "`bool`" in said:
            said += '; in YAML an unquoted off is a bool: "off" is text'
        raise StartError(f"the contract of intents cannot be read: {file}: {said}") from None
    return Contract(handlers, intents)


def route(contract: Contract, present: Collection[str], emitted: Collection[str] = INTENTS) -> list[Route]:
    """Who carries out each intent that the decider can emit, given the resources that are present.

    Raises StartError, which names every intent that has no handler, one that cannot carry it out, or one that lacks
    what it needs; and every name in the contract that is no intent.
    """
    routes: list[Route] = []
    wrong = [f"{name} is no intent" for name in contract.intents if name not in emitted]
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
    """The routes of this service. Raises StartError as `route` does."""
    present = {"database"} | ({"consul"} if settings.consul_url is not None else set())
    return route(read_contract(), present)


def log_what_is_off(routes: Collection[Route]) -> None:
    """Say in the log, in one line for each resource that is missing, which intents nobody carries out."""
    off = [each for each in routes if each.handler == OFF]
    for resource in dict.fromkeys(each.needs for each in off):
        names = ", ".join(each.intent for each in off if each.needs == resource)
        log.info("off, without %s: %s", needed(resource), names)


def after_the_transaction(routes: Collection[Route]) -> dict[str, str]:
    """The handlers of those intents that leave through the outbox, by intent."""
    return {each.intent: each.handler for each in routes if each.after}


def needed(resource: str) -> str:
    """A resource and the variable that brings it."""
    return f"{resource} ({SETTINGS.get(resource, 'which is not known')})"
