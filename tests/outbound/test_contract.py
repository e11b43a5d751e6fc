"""The contract of intents: the shipped one, and contracts that are refused at the start."""

import logging
from importlib.resources import files
from pathlib import Path

import pytest

from app.domain.intents import INTENT_NAMES
from app.errors import StartError
from app.outbound.contract import (
    ABLE,
    OFF,
    Contract,
    Route,
    Terms,
    after_the_transaction,
    log_what_is_off,
    read_contract,
    route,
    routes_of,
)
from app.settings import read_settings

EVERYTHING = {"database", "consul"}
SHIPPED = read_contract()


def contract(**intents: str | None) -> Contract:
    """The shipped contract with other handlers for some intents (a dot is written as two underscores)."""
    named = {name.replace("__", "."): handler for name, handler in intents.items()}
    routed = {name: handler for name, handler in {**SHIPPED.intents, **named}.items() if handler is not None}
    return Contract({**SHIPPED.handlers, "smoke": Terms("signals", "after")}, routed)


def test_the_shipped_contract_has_every_intent() -> None:
    """The shipped contract has exactly the decider's intents, each with a handler that can carry it out."""
    assert [(each.intent, each.handler) for each in route(SHIPPED, EVERYTHING)] == [
        ("postgres.upsert_registration", "postgres"),
        ("postgres.update_registration", "postgres"),
        ("consul.register", "consul"),
        ("consul.activate", "consul"),
        ("consul.deregister", "consul"),
    ]
    assert tuple(SHIPPED.intents) == INTENT_NAMES
    assert set(SHIPPED.handlers) == set(ABLE)


def test_what_runs_after_the_transaction_leaves_through_the_outbox() -> None:
    """Consul's intents leave through the outbox; PostgreSQL's are carried out within the transaction."""
    assert after_the_transaction(route(SHIPPED, EVERYTHING)) == {
        "consul.register": "consul",
        "consul.activate": "consul",
        "consul.deregister": "consul",
    }


def test_without_consul_its_intents_are_off() -> None:
    """Without Consul its intents have no handler and no entry in the outbox; other intents stay on."""
    routes = routes_of(read_settings())
    assert routes[2:] == [
        Route("consul.register", OFF, "consul", after=False),
        Route("consul.activate", OFF, "consul", after=False),
        Route("consul.deregister", OFF, "consul", after=False),
    ]
    assert after_the_transaction(routes) == {}


def test_with_consul_its_intents_are_on() -> None:
    """Consul's intents are on if PQS_CONSUL_URL is set."""
    routes = routes_of(read_settings({"consul_url": "http://127.0.0.1:8500"}))
    assert set(after_the_transaction(routes)) == {"consul.register", "consul.activate", "consul.deregister"}


def test_the_log_says_what_is_off(caplog: pytest.LogCaptureFixture) -> None:
    """Each missing resource is logged in one line with the intents that need it."""
    with caplog.at_level(logging.INFO, logger="app.outbound.contract"):
        log_what_is_off(route(SHIPPED, {"database"}))
    off = "consul.register, consul.activate, consul.deregister"
    assert caplog.messages == [f"consul (PQS_CONSUL_URL) is not set: these intents are not carried out: {off}"]
    log_what_is_off(route(SHIPPED, EVERYTHING))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("broken", "present", "said"),
    [
        (contract(consul__register=None), EVERYTHING, "consul.register has no handler"),
        (
            contract(consul__register="nomad"),
            EVERYTHING,
            "consul.register is routed to nomad, which cannot carry it out",
        ),
        (
            contract(consul__register="smoke"),
            EVERYTHING,
            "consul.register is routed to smoke, which cannot carry it out",
        ),
        (contract(consul__register="postgres"), EVERYTHING, "consul.register is routed to postgres, which cannot"),
        (contract(consul__registre="consul"), EVERYTHING, "consul.registre is not an intent"),
        (contract(consul="consul"), EVERYTHING, "consul is not an intent"),
        (SHIPPED, {"consul"}, "routed to postgres, which lacks what it needs: database (PQS_DATABASE_URL)"),
    ],
    ids=["none", "unknown", "unable", "another's", "misspelt", "no exact name", "without what it needs"],
)
def test_a_contract_that_cannot_be_kept_is_refused(broken: Contract, present: set[str], said: str) -> None:
    """The message names the intent and what it lacks."""
    with pytest.raises(StartError) as refused:
        route(broken, present)
    assert str(refused.value).startswith("the contract of intents cannot be kept: ")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("handlers:", "handlers: x: y", "at line 5, column 12"),
        ("runs: after", "runs: later", "Invalid enum value 'later' at `$.handlers.consul.runs`"),
        ('without: "off"', "without: off", "got `bool` at `$.handlers.consul.without`; in YAML an unquoted off"),
        ("consul.register: consul", "consul.register: off", "got `bool` at `$.intents.consul.register`; in YAML an"),
        ("needs: consul", "neds: consul", "unknown field `neds` at `$.handlers.consul`"),
        ("intents:", "effects:", "unknown field `effects` at `$`"),
    ],
)
def test_a_file_that_is_no_contract_is_named(tmp_path: Path, written: str, instead: str, said: str) -> None:
    """The message names the file, the fault, and its place in the file."""
    shipped = files("app.outbound").joinpath("contract.yaml").read_text(encoding="utf-8")
    file = tmp_path / "contract.yaml"
    file.write_text(shipped.replace(f"{written}\n", f"{instead}\n", 1))
    with pytest.raises(StartError) as refused:
        read_contract(file)
    assert str(refused.value).startswith(f"the contract of intents cannot be read: {file}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_everything_that_is_wrong_is_named_at_once() -> None:
    """One message names all mistakes of the contract."""
    with pytest.raises(StartError) as refused:
        route(contract(consul__register=None, consul__activate=None, consul__deregister="nomad"), set())
    said = str(refused.value)
    assert all(name in said for name in INTENT_NAMES)
