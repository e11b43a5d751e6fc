"""create_app(): the ASGI application; its lifespan builds and closes the parts."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import (
    acts,
    audit,
    changes,
    console,
    context,
    counts,
    dead_letters,
    direct,
    domains,
    entities,
    events,
    health,
    held,
    history,
    letter_runs,
    overdue,
    overview,
    problems,
    queries,
    snapshots,
    system,
    watermarks,
    workflows,
)
from app.api.edge import Edge
from app.api.full_scans import FullScans
from app.api.hosts import Hosts
from app.api.methods import Allowed
from app.api.openapi import document
from app.api.origins import Origins
from app.api.room import PART_OF_A_PEER, Room
from app.errors import StartError
from app.outbound import contract
from app.parts import Parts
from app.runtime import log
from app.runtime.access_log import AccessLog
from app.runtime.connections import Connections, descriptor_limit
from app.runtime.metrics import Metrics
from app.runtime.signals import collect_seldom
from app.settings import ConsoleMode, Settings, read_settings


class Application(FastAPI):
    """FastAPI inside our own layers: the hot calls, and the middleware of every other request (`routed`)."""

    def __init__(
        self, metrics: Metrics, hosts: Hosts, origins: Origins, connections: Connections, **options: Any
    ) -> None:
        super().__init__(**options)
        self.connections = connections
        self.allowed = Allowed(self)
        self.edge = edge = Edge(super().__call__, hosts=hosts, origins=origins, allowed=self.allowed)
        self.routed = context.RequestContext(edge, metrics, problems.answer_to, edge.lacking)
        self.hot_calls = direct.HotCalls(self.routed, metrics, edge)
        # These and `connections` are what app/runtime/protocol.py looks for.
        self.direct, self.refuse = self.hot_calls.find, self.hot_calls.refuse

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's, without its outermost layer, which would answer unforeseen errors before ours does."""
        outermost = super().build_middleware_stack()
        return outermost.app if isinstance(outermost, ServerErrorMiddleware) else outermost

    def drain(self) -> None:
        """Say on `/readyz` that this process is about to stop, and end each connection with its next answer."""
        self.connections.draining = True

    def stop(self) -> None:
        """Let everybody go who waits for a change: app/runtime/processes.py calls this when the server stops."""
        if (service := self.hot_calls.service) is not None:
            service.feed.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["app"] = self
        await self.hot_calls(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The application; its parts live as long as its lifespan.

    Raises StartError without `settings.database_url`, and for intents that nobody can carry out.
    """
    if settings.database_url is None:
        raise StartError("PQS_DATABASE_URL is not set; `pqs serve` would start a PostgreSQL of its own")
    url = settings.database_url.get_secret_value()
    contract.routes_of(settings)  # raises here, before the lifespan begins
    metrics = Metrics(AccessLog(settings.access_log, settings.slow), slow=settings.slow)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Parts(settings, url, metrics) as parts:
            service = await parts.service()
            application.edge.entry.guard = service.access.guard
            application.edge.entry.only_reads = settings.console is ConsoleMode.READ_ONLY
            app.state.service = application.hot_calls.service = service
            app.state.overviews = overview.Overviews(service)
            yield
            metrics.access.sum_up()

    app = application = Application(
        metrics,
        Hosts.of(settings.allowed_hosts, settings.host),
        Origins.of(settings.cors_origins, public_url=settings.public_url),
        Connections(
            settings.max_connections, descriptors=descriptor_limit(), clock=time.monotonic, health=health.PATHS
        ),
        title="Projection Query Service",
        version=version("projection-query-service"),
        lifespan=lifespan,
        docs_url=None,  # document.install adds them, for any prefix of a proxy
        redoc_url=None,
        servers=[{"url": settings.public_url or "/"}],
        redirect_slashes=False,  # a path with a slash more or less is unknown
    )
    resources = (
        events,
        entities,
        acts,
        counts,
        overdue,
        overview,
        domains,
        changes,
        history,
        workflows,
        watermarks,
        snapshots,
        held,
        letter_runs,
        dead_letters,
        audit,
        system,
        health,
    )
    for resource in resources:
        app.include_router(resource.router, dependencies=[] if resource is health else [Depends(queries.check_query)])
    app.state.full_scans = FullScans()
    app.state.room = Room(max(settings.body_memory, PART_OF_A_PEER * settings.max_body))
    problems.install(app)
    document.install(app, issuer=settings.oidc_issuer)
    console.install_console(app, settings)
    return app


def from_environment() -> FastAPI:
    """The application with the settings of the environment: each process of `pqs serve` runs it."""
    settings = read_settings()
    log.configure(settings.log_level, settings.log_format, context.correlation_id.get, role="serve")
    app = create_app(settings)
    collect_seldom()
    return app
