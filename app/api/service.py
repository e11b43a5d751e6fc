"""What a request has at hand: the parts that are built once, in the lifespan."""

from dataclasses import dataclass

from fastapi import Request

from app.api.metrics import Metrics
from app.projector import Projector
from app.settings import Settings
from app.store.database import Database


@dataclass(frozen=True)
class Service:
    """The parts. `database` is the primary, for point reads and writes; `scans` is for lists, counts and scans."""

    settings: Settings
    database: Database
    scans: Database
    projector: Projector
    metrics: Metrics


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    service: Service = request.app.state.service
    return service
