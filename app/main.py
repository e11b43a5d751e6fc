"""create_app(): the ASGI application, and the lifespan in which its parts are built and closed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    overdue,
    problems,
    watermarks,
    workflows,
)
from app.api.openapi import document
from app.errors import StartError
from app.outbound import contract
from app.parts import Parts
from app.runtime import log
from app.runtime.metrics import Metrics
from app.runtime.signals import collect_seldom
from app.settings import Settings, read_settings


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
    contract.routes_of(settings)  # which refuses to start here, before there is a lifespan
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Parts(settings, url) as parts:
            app.state.service = application.hot_calls.service = await parts.service(metrics)
            yield

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
    document.install(app)
    return app


def from_environment() -> FastAPI:
    """The application as the environment sets it: what each process of `pqs serve` runs."""
    settings = read_settings()
    log.configure(settings.log_level, settings.log_format, context.correlation_id.get)
    app = create_app(settings)
    collect_seldom()
    return app
