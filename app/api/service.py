"""The parts that a request has at hand."""

from fastapi import Request

from app.api.walks import Walks
from app.parts import Service

__all__ = ["Service", "service_of", "walks_of"]


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    service: Service = request.app.state.service
    return service


def walks_of(request: Request) -> Walks:
    """The turns of this process for reads that walk."""
    walks: Walks = request.app.state.walks
    return walks
