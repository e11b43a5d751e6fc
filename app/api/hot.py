"""The calls that come thousands of times a second, past the framework.

Routing, parameters and middleware of FastAPI cost more processor time than everything else in these calls. In their
plain form (no query) there is nothing in them for it to do: they are recognised here, and the very handlers that it
would call are called. Every other form, and every other call, goes on to FastAPI.
"""

from uuid import UUID

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.api import entities, events, workflows
from app.api.context import App, Receive, Scope, Send
from app.api.problems import answer_to
from app.api.schemas import DomainQuery, EventsQuery, NoQuery

ENTITY = "/v1/entities/"
ENTITY_LENGTH = len(ENTITY) + 36  # with a UUID in its usual form
EVENTS = "/v1/events"
WORKFLOW = "/v1/workflows/"
NO_QUERY = DomainQuery()
NO_EVENTS_QUERY = EventsQuery()
NO_WORKFLOW_QUERY = NoQuery()
WORKFLOW_CALLS = {"GET": workflows.get_workflow, "PUT": workflows.put_workflow}


class HotCalls:
    """ASGI middleware that answers `GET /v1/entities/{entity_id}`, `POST /v1/events`, `GET` and `PUT
    /v1/workflows/{workflow_key}`, and hands on all else."""

    def __init__(self, app: App) -> None:
        self._app = app
        routes = (*entities.router.routes, *events.router.routes, *workflows.router.routes)
        self._routes: dict[object, APIRoute] = {
            route.endpoint: route for route in routes if isinstance(route, APIRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["query_string"]:
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if method == "GET" and len(path) == ENTITY_LENGTH and path.startswith(ENTITY):
            try:
                entity_id = msgspec.convert(path[len(ENTITY) :], UUID)
            except msgspec.ValidationError:
                await self._app(scope, receive, send)
                return
            call = entities.get_entity(self._request(scope, receive, entities.get_entity), entity_id, NO_QUERY)
        elif method == "POST" and path == EVENTS:
            call = events.post_events(self._request(scope, receive, events.post_events), NO_EVENTS_QUERY)
        elif method in WORKFLOW_CALLS and path.startswith(WORKFLOW):
            handler = WORKFLOW_CALLS[method]
            call = handler(self._request(scope, receive, handler), path[len(WORKFLOW) :], NO_WORKFLOW_QUERY)
        else:
            await self._app(scope, receive, send)
            return
        try:
            response = await call
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - it is answered, as FastAPI's handlers would answer it
            response = answer_to(scope, error)
        await response(scope, receive, send)

    def _request(self, scope: Scope, receive: Receive, handler: object) -> Request:
        """The request as FastAPI would hand it to this handler."""
        scope["route"] = self._routes[handler]
        return Request(scope, receive)
