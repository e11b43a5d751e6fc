"""Who may call what, in the document: security schemes, the scope of each operation, and the refusals."""

from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.access.principals import Scope
from app.access.refusals import AuthError, ForbiddenError, LimitedError, UnauthenticatedError, lacks, no_token
from app.api.methods import routes_of
from app.api.needs import Needs
from app.api.openapi.operations import REFERENCE, Json
from app.api.problems import MEDIA_TYPE

KEY = "key"  # the names of the schemes
OIDC = "oidc"

REACH = {
    "events": "the domain",
    "entities": "the domain",
    "workflows": "the workflow key",
    "operations": "all domains",
}
WHY = {
    401: "There is no key or token, or it does not count (any more).",
    429: "The caller has used up its rate. Nothing was done.",
}
SECONDS = {"type": "integer", "format": "int64", "minimum": 1}
STRING = {"type": "string"}
REFUSAL_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"description": "`Bearer` (RFC 6750).", "schema": STRING}},
    403: {"WWW-Authenticate": {"description": "The scope that is missing (RFC 6750).", "schema": STRING}},
    429: {
        "Retry-After": {"description": "Seconds to wait.", "schema": SECONDS},
        "RateLimit": {"description": "What is left, and the seconds until there is enough.", "schema": STRING},
        "RateLimit-Policy": {"description": "The caller's burst, and the seconds that refill it.", "schema": STRING},
    },
}


def declared(app: FastAPI) -> Iterator[tuple[APIRoute, list[Needs]]]:
    """Every route with what it declares of its callers: one Needs, where nobody has forgotten it."""
    for route in routes_of(app):
        if isinstance(route, APIRoute):
            found = [each.dependency for each in route.dependencies]
            yield route, [each for each in found if isinstance(each, Needs)]


def secure(document: Json, app: FastAPI, issuer: str | None) -> None:
    """Write what the routes of `app` declare into the document; `issuer` is the OpenID Connect issuer, if any."""
    schemes = {KEY: {"type": "http", "scheme": "bearer", "description": "A key (`pqs keys create`) or a token."}}
    if issuer is not None:
        configuration = issuer.rstrip("/") + "/.well-known/openid-configuration"
        schemes[OIDC] = {"type": "openIdConnect", "openIdConnectUrl": configuration}
    document["components"]["securitySchemes"] = schemes
    for route, [needs] in declared(app):
        if not route.include_in_schema:
            continue
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            if needs.scope is None:
                operation["security"] = []
                continue
            operation["security"] = [{scheme: [needs.scope.value]} for scheme in schemes]
            instance = _instance(operation, route.path_format)
            for error, status, why in _refusals(needs.scope):
                operation["responses"].setdefault(str(status), _response(operation, error, status, why, instance))
            operation["responses"] = dict(sorted(operation["responses"].items()))


def _refusals(scope: Scope) -> Iterator[tuple[AuthError, int, str]]:
    yield no_token(), UnauthenticatedError.status, WHY[401]
    of = REACH.get(scope.partition(":")[0])
    yield lacks(scope), ForbiddenError.status, f"The caller lacks the scope `{scope}`{f' for {of}' if of else ''}."
    yield _limited(), LimitedError.status, WHY[429]


def _limited() -> LimitedError:
    return LimitedError("this caller may use 100 units a second; try again in 1 s", {}, timedelta(seconds=1))


def _response(operation: Json, error: AuthError, status: int, why: str, instance: str) -> Json:
    example = {
        "type": error.type,
        "title": error.title,
        "status": status,
        "detail": str(error),
        "instance": instance,
    }
    correlation = next(iter(operation["responses"].values()))["headers"]["X-Correlation-ID"]
    return {
        "description": why,
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": REFERENCE.format(name="Problem")},
                "examples": {str(status): {"summary": HTTPStatus(status).phrase, "value": example}},
            }
        },
        "headers": {"X-Correlation-ID": correlation, **REFUSAL_HEADERS[status]},
    }


def _instance(operation: Json, path: str) -> str:
    """A path of this operation, from its other examples."""
    for response in operation["responses"].values():
        for example in response.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}).values():
            return str(example["value"]["instance"])
    return path
