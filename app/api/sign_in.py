"""`/ui/session` and `/ui/oidc`: people sign in to the console with a key, posted once, or at an issuer; and out."""

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from msgspec import Struct

from app.access.principals import Principal
from app.access.refusals import bad_token
from app.access.sessions import COOKIE, FLOW_COOKIE, FLOW_LASTS, LASTS, Sessions, token_of
from app.api.audit import act_of
from app.api.bodies import JSON, media_type, read_body
from app.api.entry import NOBODY, SESSION_PATH, check_page, session_in
from app.api.needs import caller_of
from app.api.schemas import encode
from app.api.service import service_of
from app.errors import ForeignOriginError, NotFoundError, UnreadableError
from app.store.sign_ins import SignIn

if TYPE_CHECKING:  # it needs the extra `oidc`
    from app.access.code_flow import CodeFlow

LARGEST = 4096  # bytes of a body: a key has 68
ATTRIBUTES = "Path=/; HttpOnly; Secure; SameSite=Strict"


class SignInKey(Struct, frozen=True):
    """The key with which somebody signs in."""

    key: str


class SessionState(Struct, frozen=True):
    """Who has signed in, with which rights; all null where nobody has. `token` is for the header PQS-Token."""

    principal: str | None = None
    scopes: list[str] | None = None
    domains: list[str] | None = None
    token: str | None = None


def install_sign_in(app: FastAPI) -> None:
    """Add the routes of sessions to `app`."""
    app.add_route(SESSION_PATH, _show, methods=["GET"], include_in_schema=False)
    app.add_route(SESSION_PATH, _sign_in, methods=["POST"], include_in_schema=False)
    app.add_route(SESSION_PATH, _sign_out, methods=["DELETE"], include_in_schema=False)
    app.add_route("/ui/oidc", _to_issuer, include_in_schema=False)
    app.add_route("/ui/oidc/back", _from_issuer, include_in_schema=False)


async def _show(request: Request) -> Response:
    """Answer who has signed in: 200 also where nobody has."""
    secret, principal = session_in(request.scope["headers"]), caller_of(request)
    if secret is None or principal is NOBODY:
        return _answer(SessionState())
    return _answer(_state(principal, secret))


async def _sign_in(request: Request) -> Response:
    """Begin a session with the key in the body.

    Raises ForeignOriginError, UnauthenticatedError for a key that does not count, and what a wrong body raises.
    """
    if not _is_from_own_page(request):
        raise ForeignOriginError("people sign in from a page of this service")
    media_type(request, JSON)
    try:
        key = msgspec.json.decode(await read_body(request, LARGEST), type=SignInKey).key.encode("ascii")
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise UnreadableError('send a key as {"key": "pqs_…"}') from None
    guard = service_of(request).access.guard
    bearer = b"Bearer " + key
    held, found = guard.key_in(bearer), guard.known(bearer)
    if held is None or not isinstance(found, Principal):
        raise found if isinstance(found, Exception) else bad_token("this is not a key of this service")
    sign_in = SignIn(key_id=held.id.decode())
    secret = await _begin(request, found, sign_in, f"key {sign_in.key_id}", LASTS)
    return _answer(_state(found, secret), _cookie(secret))


async def _begin(request: Request, who: Principal, sign_in: SignIn, target: str, lasts: timedelta) -> bytes:
    request.scope["principal"] = who  # for the audit, and the log
    return await _sessions(request).begin(sign_in, lasts, act_of(request, "session.begin", target))


async def _to_issuer(request: Request) -> Response:
    """Lead to the issuer, where people sign in. Raises NotFoundError where there is none, and UnavailableError."""
    place, flow = await _flow(request).begin(_back(request))
    # Not Strict: the browser comes back from the issuer's page.
    attributes = f"Max-Age={int(FLOW_LASTS.total_seconds())}; Path=/; HttpOnly; Secure; SameSite=Lax"
    return RedirectResponse(place, status_code=302, headers={"Set-Cookie": f"{FLOW_COOKIE}={flow}; {attributes}"})


async def _from_issuer(request: Request) -> Response:
    """Begin a session for who comes back from the issuer, and lead to the console.

    Raises UnauthenticatedError for an answer that nobody has asked for, and UnavailableError.
    """
    given = request.query_params
    if "code" not in given or "state" not in given:
        raise bad_token(f"the issuer has signed nobody in: {given.get('error', 'no code')[:100]}")
    cookies = request.headers.get("cookie", "")
    who = await _flow(request).end(cookies, given["state"], given["code"], _back(request))
    grant = who.grant
    sign_in = SignIn(
        principal=who.name,
        scopes=sorted(grant.scopes),
        domains=sorted(grant.domains),
        workflow_prefixes=sorted(grant.prefixes),
    )
    secret = await _begin(request, who, sign_in, who.name, LASTS)
    answer = RedirectResponse("../overview", status_code=303)
    answer.headers.append("Set-Cookie", _cookie(secret))
    answer.headers.append("Set-Cookie", f"{FLOW_COOKIE}=; Max-Age=0; Path=/; HttpOnly; Secure; SameSite=Lax")
    return answer


def _flow(request: Request) -> "CodeFlow":
    flow = service_of(request).access.code_flow
    if flow is None:
        raise NotFoundError("nobody signs in at an issuer here: PQS_OIDC_CLIENT_ID is not set")
    return flow


def _back(request: Request) -> str:
    """Where the issuer sends the browser: it compares that with what is registered there."""
    public = service_of(request).settings.public_url
    own = public.rstrip("/") if public is not None else f"{request.url.scheme}://{request.headers['host']}"
    return f"{own}/ui/oidc/back"


async def _sign_out(request: Request) -> Response:
    """End the session. Raises ForeignOriginError, and ForbiddenError without its token."""
    secret = session_in(request.scope["headers"])
    if secret is not None:
        check_page(request.scope["headers"], secret, from_own_page=_is_from_own_page(request))
        await _sessions(request).end(secret)
    return _answer(SessionState(), f"{COOKIE}=; Max-Age=0; {ATTRIBUTES}")


def _cookie(secret: bytes) -> str:
    return f"{COOKIE}={secret.decode()}; Max-Age={int(LASTS.total_seconds())}; {ATTRIBUTES}"


def _sessions(request: Request) -> Sessions:
    sessions = service_of(request).access.guard.sessions
    if sessions is None:
        raise NotFoundError("this service asks nobody for a key, so nobody signs in")
    return sessions


def _is_from_own_page(request: Request) -> bool:
    given = dict(request.scope["headers"])
    origin = given.get(b"origin")
    own: bool = origin is not None and request.app.edge.origins.is_own(origin, given.get(b"host"))
    return own


def _state(principal: Principal, secret: bytes) -> SessionState:
    grant = principal.grant
    return SessionState(principal.name, sorted(grant.scopes), sorted(grant.domains), token_of(secret))


def _answer(state: SessionState, cookie: str | None = None) -> Response:
    headers = {"Cache-Control": "no-store"} | ({} if cookie is None else {"Set-Cookie": cookie})
    return Response(encode(state), headers=headers, media_type=JSON)
