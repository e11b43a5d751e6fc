"""The states of a registration, and the transitions between them."""

from enum import StrEnum


class RegistrationState(StrEnum):
    """The state of a node's registration."""

    # The PostgreSQL enum `registration_state` has the same values in this order; a test compares the two.

    PENDING_REGISTRATION = "pending_registration"
    ACCEPTED = "accepted"
    AWAITING_ACK = "awaiting_ack"
    REJECTED = "rejected"
    ACK_TIMED_OUT = "ack_timed_out"
    ACK_RECEIVED = "ack_received"
    ACTIVE = "active"
    LIVENESS_EXPIRED = "liveness_expired"

    def is_terminal(self) -> bool:
        """Whether only a new registration leads out of this state; heartbeats are ignored then."""
        return self in {RegistrationState.REJECTED, RegistrationState.LIVENESS_EXPIRED}

    def is_active(self) -> bool:
        """Whether the node is registered and alive."""
        return self is RegistrationState.ACTIVE

    def requires_ack(self) -> bool:
        """Whether the node must still acknowledge: its `ack_deadline` counts."""
        return self in {RegistrationState.ACCEPTED, RegistrationState.AWAITING_ACK}

    def requires_liveness(self) -> bool:
        """Whether the node must send heartbeats: its `liveness_deadline` counts."""
        return self is RegistrationState.ACTIVE

    def can_retry(self) -> bool:
        """Whether the node missed its acknowledgement and may register again."""
        return self is RegistrationState.ACK_TIMED_OUT

    def can_transition_to(self, state: "RegistrationState") -> bool:
        """Whether an event may lead from this state to `state`."""
        return self in SOURCES[state]


_S = RegistrationState

# For each state, the states that an event may lead from. Only `registration.recorded` is exempt from this table.
SOURCES: dict[RegistrationState, tuple[RegistrationState, ...]] = {
    _S.PENDING_REGISTRATION: (_S.REJECTED, _S.ACK_TIMED_OUT, _S.LIVENESS_EXPIRED),
    _S.ACCEPTED: (_S.PENDING_REGISTRATION,),
    _S.AWAITING_ACK: (_S.ACCEPTED,),
    _S.REJECTED: (_S.PENDING_REGISTRATION,),
    _S.ACK_TIMED_OUT: (_S.ACCEPTED, _S.AWAITING_ACK),
    _S.ACK_RECEIVED: (_S.ACCEPTED, _S.AWAITING_ACK),
    _S.ACTIVE: (_S.ACK_RECEIVED,),
    _S.LIVENESS_EXPIRED: (_S.ACTIVE,),
}
