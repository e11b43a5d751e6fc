"""create_app(): the ASGI application, and the lifespan in which its parts are built and closed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import (
    context,
    counts,
    dead_letters,
    direct,
    entities,
    events,
    health,
    openapi,
    overdue,
    problems,
    watermarks,
    workflows,
)
from app.api.service import Service
from app.domain.registration import Timing
from app.errors import StartError
from app.outbound.entries import outgoing_of
from app.outbound.relay import relaying
from app.projection.batching import Reader, Writer
from app.projection.projector import Projector
from app.projection.sweep import sweeping
from app.runtime import log
from app.runtime.metrics import Metrics
from app.runtime.signals import collect_seldom
from app.settings import Settings, read_settings
from app.store.database import Database
from app.workflows import Pruner, WorkflowStore


class Application(FastAPI):
    """FastAPI, with ours around all of it: the hot calls, and what every other request passes through (`routed`)."""

    def __init__(self, metrics: Metrics, **options: Any) -> None:
        super().__init__(**options)
        self.routed = context.RequestContext(super().__call__, metrics, problems.answer_to)
        self.hot_calls = direct.HotCalls(self.routed, metrics)
        self.direct, self.refuse = (
            self.hot_calls.find,
            self.hot_calls.refuse,
        )  # app/runtime/protocol.py looks for them

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's, less its outermost, which would answer unforeseen errors and broken bodies before ours does."""
        outermost = super().build_middleware_stack()
        return outermost.app if isinstance(outermost, ServerErrorMiddleware) else outermost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["app"] = self
        await self.hot_calls(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The application. It needs `settings.database_url`; its parts live as long as its lifespan."""
    if settings.database_url is None:
        raise StartError("PQS_DATABASE_URL is not set; `pqs serve` starts a PostgreSQL of its own")
    url = settings.database_url.get_secret_value()
    read_url = settings.database_read_url.get_secret_value() if settings.database_read_url else url
    metrics = Metrics()
    outgoing = outgoing_of(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        timeout = timedelta(seconds=settings.statement_timeout)
        database = Database(url, pool_size=settings.pool_size, statement_timeout=timeout)
        scans = Database(read_url, pool_size=settings.pool_size, statement_timeout=timeout, scans=True)
        timing = Timing(
            ack_timeout=timedelta(seconds=settings.ack_timeout),
            liveness_interval=timedelta(seconds=settings.liveness_interval),
            liveness_window=timedelta(seconds=settings.liveness_window),
        )
        projector = Projector(database, timing, outgoing)
        reader = Reader(database, joining=settings.batching)
        writer = Writer(projector, joining=settings.batching)
        store = WorkflowStore(database, joining=settings.batching)
        breakers = {"primary": database.breaker, "scans": scans.breaker}
        service = Service(settings, database, scans, reader, projector, writer, store, outgoing, metrics, breakers)
        app.state.service = application.hot_calls.service = service
        pruner = Pruner(database, timedelta(seconds=settings.action_retention))
        pruning = asyncio.create_task(pruner.run())
        workers = AsyncExitStack()
        try:
            if settings.relay:
                relay = await workers.enter_async_context(relaying(settings, url))
                outgoing.on_commit = relay.wake
                breakers |= relay.breakers
            if settings.sweep:
                await workers.enter_async_context(sweeping(settings, url, outgoing, metrics.swept))
            yield
        finally:
            pruning.cancel()
            await asyncio.wait([pruning])
            await store.close()
            await writer.close()
            await workers.aclose()
            await reader.close()
            await database.close()
            await scans.close()

    app = application = Application(
        metrics,
        title="Projection Query Service",
        version=version("projection-query-service"),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # a path is what the contract says, or it is unknown
    )
    for resource in (events, entities, counts, overdue, workflows, watermarks, dead_letters, health):
        app.include_router(resource.router)
    problems.install(app)
    openapi.install(app)
    return app


def from_environment() -> FastAPI:
    """The application as the environment sets it: what each process of `pqs serve` runs."""
    settings = read_settings()
    log.configure(settings.log_level, settings.log_format, context.correlation_id.get)
    app = create_app(settings)
    collect_seldom()
    return app
