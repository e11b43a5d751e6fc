"""Intents: their names and their JSON form."""

from typing import Any

import msgspec
import pytest

from app.domain import intents
from app.domain.decider import Deadline, Decision, decide, expire
from app.domain.events import TRIGGER_CLASSES, Trigger
from app.domain.intents import (
    INTENT_NAMES,
    ActivateService,
    DeregisterService,
    Intent,
    RegisterService,
    UpdateRegistration,
)
from app.domain.registration import Timing
from app.domain.states import RegistrationState
from tests.making import NODE, event, row, when

ACTIVE = RegistrationState.ACTIVE


def test_there_are_five_intents() -> None:
    """Two are the database's and three are Consul's."""
    assert INTENT_NAMES == (
        "postgres.upsert_registration",
        "postgres.update_registration",
        "consul.register",
        "consul.activate",
        "consul.deregister",
    )


def test_the_decider_emits_each_of_them_and_no_others() -> None:
    """Over all triggers, states and deadlines, the decider emits exactly the intents of the contract."""
    triggers = [event(str(cls.__struct_config__.tag), 100) for cls in TRIGGER_CLASSES]
    rows = [row(state, ack_timeout_emitted_at=None, liveness_timeout_emitted_at=None) for state in RegistrationState]
    decisions = [
        decide(before, trigger, Timing())
        for before in (None, *rows)
        for trigger in triggers
        if isinstance(trigger, Trigger)
    ]
    decisions += [expire(before, deadline, when(1000)) for before in rows for deadline in Deadline]
    emitted = {intent.name for decision in decisions if isinstance(decision, Decision) for intent in decision.intents}
    assert emitted == set(INTENT_NAMES)


@pytest.mark.parametrize(
    "intent",
    [
        intents.upsert(row(ACTIVE), None),
        intents.upsert(row(ACTIVE), row(ACTIVE)),
        intents.register(row(ACTIVE, capabilities={"tags": ["a"]})),
        intents.deregister(row(ACTIVE)),
    ],
    ids=["upsert", "upsert of a known row", "register", "deregister"],
)
def test_an_intent_travels_as_json(intent: Intent) -> None:
    """An intent's JSON contains its name, and reading it gives the same intent."""
    written = msgspec.json.encode(intent)
    assert msgspec.json.decode(written)["intent"] == intent.name
    assert msgspec.json.decode(written, type=Intent) == intent


def test_an_update_names_what_is_different() -> None:
    """An update has only the columns that differ, and the version that was read."""
    after = row(ACTIVE, node_type="x", version=22)
    assert intents.update(after, row(ACTIVE)) == UpdateRegistration(
        entity_id=NODE, domain="registration", changes={"node_type": "x", "version": 22}, read_version=21
    )


def test_a_difference_is_computed_when_somebody_asks() -> None:
    """A difference holds only the two rows until it is read; it reads and prints like a dict."""
    difference = intents.Difference(row(ACTIVE, node_type="x"), row(ACTIVE))
    assert difference._columns is None
    assert (len(difference), difference["node_type"], repr(difference)) == (1, "x", "{'node_type': 'x'}")


def test_consul_is_told_who_and_what() -> None:
    """Entity, domain, type, tags, capabilities and version to register; entity and domain to deregister."""
    capabilities: dict[str, object] = {"tags": ["a", "b"], "address": "10.0.0.7"}
    node = row(ACTIVE, domain="edge", node_type="gpu", capabilities=capabilities)
    described: dict[str, Any] = {"entity_id": NODE, "domain": "edge", "node_type": "gpu", "tags": ("a", "b")}
    described |= {"version": 21, "capabilities": capabilities, "passing": True}
    assert intents.register(node) == RegisterService(**described)
    assert intents.activate(node) == ActivateService(**described)
    assert intents.deregister(node) == DeregisterService(entity_id=NODE, domain="edge")
