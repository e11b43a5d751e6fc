"""Consul: nodes as services with a check, and the rounds that keep them equal to the rows."""

from app.outbound.consul.handler import Consul
from app.outbound.consul.reconciler import Reconciler, warn_without_sweep
from app.outbound.consul.rights import Rights, rights_of
from app.outbound.consul.services import Profile, profile_of

__all__ = [
    "Consul",
    "Profile",
    "Reconciler",
    "Rights",
    "profile_of",
    "rights_of",
    "warn_without_sweep",
]
