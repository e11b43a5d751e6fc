"""What a request has at hand: the parts that are built once, in the lifespan."""

from dataclasses import dataclass

from fastapi import Request

from app.breaker import CircuitBreaker
from app.outbound.entries import Outgoing
from app.projection.batching import Reader, Writer
from app.projection.projector import Projector
from app.runtime.metrics import Metrics
from app.settings import Settings
from app.store.database import Database
from app.workflows import WorkflowStore


@dataclass(frozen=True)
class Service:
    """The parts. `database` is the primary, for point reads and writes; `scans` is for lists, counts and scans.

    `reader` and `writer` join what comes one by one; arrays and streams go to the projector as they are.
    `breakers` are named for the metrics by what they keep requests from.
    """

    settings: Settings
    database: Database
    scans: Database
    reader: Reader
    projector: Projector
    writer: Writer
    workflows: WorkflowStore
    outgoing: Outgoing
    metrics: Metrics
    breakers: dict[str, CircuitBreaker]


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    service: Service = request.app.state.service
    return service
