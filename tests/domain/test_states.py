"""The states and their transitions."""

import itertools

import pytest

from app.domain.states import RegistrationState

PENDING_REGISTRATION = RegistrationState.PENDING_REGISTRATION
ACCEPTED = RegistrationState.ACCEPTED
AWAITING_ACK = RegistrationState.AWAITING_ACK
REJECTED = RegistrationState.REJECTED
ACK_TIMED_OUT = RegistrationState.ACK_TIMED_OUT
ACK_RECEIVED = RegistrationState.ACK_RECEIVED
ACTIVE = RegistrationState.ACTIVE
LIVENESS_EXPIRED = RegistrationState.LIVENESS_EXPIRED

# For each predicate, the states that it holds for.
PREDICATES = {
    "is_terminal": {REJECTED, LIVENESS_EXPIRED},
    "is_active": {ACTIVE},
    "requires_ack": {ACCEPTED, AWAITING_ACK},
    "requires_liveness": {ACTIVE},
    "can_retry": {ACK_TIMED_OUT},
}

TRANSITIONS = {
    (REJECTED, PENDING_REGISTRATION),
    (ACK_TIMED_OUT, PENDING_REGISTRATION),
    (LIVENESS_EXPIRED, PENDING_REGISTRATION),
    (PENDING_REGISTRATION, ACCEPTED),
    (ACCEPTED, AWAITING_ACK),
    (PENDING_REGISTRATION, REJECTED),
    (ACCEPTED, ACK_TIMED_OUT),
    (AWAITING_ACK, ACK_TIMED_OUT),
    (ACCEPTED, ACK_RECEIVED),
    (AWAITING_ACK, ACK_RECEIVED),
    (ACK_RECEIVED, ACTIVE),
    (ACTIVE, LIVENESS_EXPIRED),
}


def test_there_are_eight_states_named_as_clients_know_them() -> None:
    """The values are the contract's names, in the order of the database's enum."""
    assert [str(state) for state in RegistrationState] == [
        "pending_registration",
        "accepted",
        "awaiting_ack",
        "rejected",
        "ack_timed_out",
        "ack_received",
        "active",
        "liveness_expired",
    ]


@pytest.mark.parametrize("state", RegistrationState)
@pytest.mark.parametrize("predicate", PREDICATES)
def test_a_predicate_holds_for_its_states_alone(predicate: str, state: RegistrationState) -> None:
    """Each predicate is true for exactly its states."""
    assert getattr(state, predicate)() is (state in PREDICATES[predicate])


@pytest.mark.parametrize(("source", "target"), list(itertools.product(RegistrationState, repeat=2)))
def test_a_state_leads_where_the_table_says(source: RegistrationState, target: RegistrationState) -> None:
    """A transition is allowed exactly when the table of states has it."""
    assert source.can_transition_to(target) is ((source, target) in TRANSITIONS)


@pytest.mark.parametrize("state", [state for state in RegistrationState if state.is_terminal()])
def test_only_a_new_registration_leads_out_of_a_terminal_state(state: RegistrationState) -> None:
    """The only transition out of a terminal state leads to `pending_registration`."""
    assert [target for target in RegistrationState if state.can_transition_to(target)] == [PENDING_REGISTRATION]
