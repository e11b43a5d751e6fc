"""The parts that a request has at hand."""

from fastapi import Request

from app.parts import Service

__all__ = ["Service", "service_of"]


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    service: Service = request.app.state.service
    return service
