"""The answers about the service itself: how it is set up, its connections, and its keys."""

from datetime import date

from msgspec import Struct

from app.domain.events import Time


class ChangedSetting(Struct, frozen=True):
    """A setting that differs from its default, both as text; `value` is null where it is a secret."""

    name: str
    value: str | None
    default: str | None


class PoolState(Struct, frozen=True, kw_only=True):
    """The connections of one pool of the process that answers."""

    name: str
    most: int
    open: int
    in_use: int
    waiting: int


class SystemState(Struct, frozen=True, kw_only=True):
    """The settings of the service that differ from their defaults, and the pools of the process that answers."""

    version: str
    pid: int
    settings: list[ChangedSetting]
    pools: list[PoolState]


class KeyRecord(Struct, frozen=True, kw_only=True):
    """A key: its holder, rights, limits and end. No answer has its secret, which is not stored."""

    id: str
    name: str
    scopes: list[str]
    domains: list[str]
    workflow_prefixes: list[str]
    rate: float | None
    burst: float | None
    created_at: Time | None
    created_by: str
    expires_at: Time
    revoked_at: Time | None
    last_used_on: date | None


class KeyList(Struct, frozen=True):
    """All keys by name and age: the live ones, those that have expired, and those that were revoked."""

    items: list[KeyRecord]
