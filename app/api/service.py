"""The parts that a request has at hand."""

from fastapi import Request

from app.api.full_scans import FullScans
from app.parts import Service

__all__ = ["Service", "full_scans_of", "service_of"]


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    service: Service = request.app.state.service
    return service


def full_scans_of(request: Request) -> FullScans:
    """The turns of this process for full scans."""
    turns: FullScans = request.app.state.full_scans
    return turns
