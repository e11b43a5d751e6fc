"""A projection as a value: its parts are consistent, and its columns agree with the rules."""

import pytest
from msgspec.structs import replace

from app.domain.decider import Deadline
from app.domain.events import Heartbeat, key_of
from app.domain.folding import fold
from app.domain.projection import REGISTRATION, PartialChange
from app.domain.registration import Registration, Timing
from app.domain.states import RegistrationState
from tests.making import NODE, event, row, when

KEY = key_of(NODE, "registration")


def test_a_type_has_one_class() -> None:
    """A type with both an event class and a trigger class is refused: should it be evolved or decided?"""
    with pytest.raises(ValueError, match=r"^the projection registration has two classes for node\.heartbeat$"):
        replace(REGISTRATION, triggers=(*REGISTRATION.triggers, Heartbeat))


@pytest.mark.parametrize(
    "changes",
    [REGISTRATION.unchanged[::-1], (PartialChange(("node_type",)), PartialChange((), cleared=("ack_deadline",)))],
    ids=["unchanged", "cleared"],
)
def test_each_change_leaves_alone_no_more_than_the_one_before(changes: tuple[PartialChange, ...]) -> None:
    """Partial changes must be nested, or a mixed batch would not write a column that changes in some of its rows."""
    with pytest.raises(
        ValueError, match=r"^the changes of the projection registration are not in order: PartialChange"
    ):
        replace(REGISTRATION, unchanged=changes)


@pytest.mark.parametrize("state", RegistrationState)
def test_a_heartbeat_leaves_its_columns_alone(state: RegistrationState) -> None:
    """An applied heartbeat keeps each column that the projection calls unchanged, and clears the cleared ones."""
    before, change = row(state), REGISTRATION.unchanged[0]
    sent = event("node.heartbeat", 100)
    [save] = fold(REGISTRATION, {KEY: before}, [sent], Timing(), by_position=False).saves
    for name in change.unchanged:
        assert getattr(save.row, name) == getattr(before, name)
    if not state.is_terminal():
        assert [getattr(save.row, name) for name in change.cleared] == [None]


@pytest.mark.parametrize("deadline", Deadline)
@pytest.mark.parametrize("state", RegistrationState)
@pytest.mark.parametrize("due_at", [None, when(9), when(10), when(11)])
@pytest.mark.parametrize("emitted_at", [None, when(1)])
def test_the_columns_of_a_deadline_say_what_the_rule_says(
    deadline: Deadline, state: RegistrationState, due_at: object, emitted_at: object
) -> None:
    """State, deadline and marker mark a row as waiting exactly when `needs_…_timeout_event` is true."""
    timeout = REGISTRATION.deadlines[deadline]
    there = row(state, **{timeout.deadline: due_at, timeout.emitted_at: emitted_at})
    waits = state in timeout.states and emitted_at is None and due_at == when(9)
    rules = {
        Deadline.ACK: Registration.needs_ack_timeout_event,
        Deadline.LIVENESS: Registration.needs_liveness_timeout_event,
    }
    assert rules[deadline](there, when(10)) is waits
    assert (type(timeout.expire(there, when(10))).__name__ == "Decision") is waits
