"""Signing in at an OpenID Connect issuer: the authorization code flow with PKCE (OpenID Connect Core, RFC 7636).

The verifier, which only this service and the browser's cookie know, proves that whoever brings the code is who began;
so the client may be a public one, without a secret. The tokens that come for it are verified as those of every call.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from urllib.parse import quote_plus, urlencode

import httpx
import msgspec
from msgspec import Struct

from app.access.issuer import ASKED, FETCH_TIME, IssuerError, document_of, is_protected
from app.access.principals import Principal
from app.access.refusals import UnauthenticatedError, bad_token
from app.access.tokens import TokenVerifier
from app.errors import UnavailableError

LARGEST = 64 * 1024  # bytes of the answer with the tokens

_FLOW = re.compile(r"(?:^|;\s*)__Host-pqs-flow=([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{43})\s*(?:;|$)")


class _Endpoints(Struct):
    """What counts of a discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str


class _Tokens(Struct):
    """What counts of the answer to a code."""

    access_token: str | None = None
    id_token: str | None = None


class OidcClient(Struct, frozen=True):
    """This service as the issuer knows it: its id, its secret (None for a public client), and what it asks for."""

    id: str
    secret: Callable[[], str | None]
    scope: str


class CodeFlow:
    """The flow of one client with one issuer."""

    def __init__(
        self, issuer: str, client: OidcClient, verifier: TokenVerifier, *, random: Callable[[int], bytes]
    ) -> None:
        self._issuer = issuer
        self._client = client
        self._verifier = verifier
        self._random = random

    async def begin(self, back: str) -> tuple[str, str]:
        """The address at which somebody signs in, and the value of the cookie that remembers it meanwhile.

        `back` is where the issuer sends the browser then. Raises UnavailableError.
        """
        state, secret = (urlsafe_b64encode(self._random(32)).rstrip(b"=").decode() for _ in range(2))
        challenge = urlsafe_b64encode(sha256(secret.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self._client.id,
            "redirect_uri": back,
            "scope": self._client.scope,
            "state": state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        place = (await self._endpoints()).authorization_endpoint
        return f"{place}{'&' if '?' in place else '?'}{urlencode(asked)}", f"{state}.{secret}"

    async def end(self, cookies: str, state: str, code: str, back: str) -> Principal:
        """The principal who has signed in.

        Raises UnauthenticatedError for an answer to nobody's question, and UnavailableError.
        """
        flow = _FLOW.search(cookies)
        if flow is None or not compare_digest(flow[1].encode(), state.encode()):
            raise bad_token("this browser has not asked to sign in here a short while ago: begin again")
        tokens = await self._redeem(code, flow[2], back)
        refused: UnauthenticatedError | None = None
        for token in (tokens.access_token, tokens.id_token):
            if token is None:
                continue
            try:
                return await self._verifier.verify(token.encode())
            except UnauthenticatedError as error:
                refused = error
        raise refused or bad_token("the issuer has sent no token")

    async def _endpoints(self) -> _Endpoints:
        place = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            async with httpx.AsyncClient(headers=headers, timeout=FETCH_TIME.total_seconds()) as client:
                found = await document_of(client, place, _Endpoints)
        except (httpx.HTTPError, httpx.InvalidURL, IssuerError) as error:
            raise UnavailableError("the issuer cannot be asked where people sign in", retry_after=ASKED) from error
        if found.issuer != self._issuer or not is_protected(found.token_endpoint):
            raise UnavailableError(
                "the issuer's document is about another issuer, or not over https", retry_after=ASKED
            )
        return found

    async def _redeem(self, code: str, verifier: str, back: str) -> _Tokens:
        sent = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": back,
            "client_id": self._client.id,
            "code_verifier": verifier,
        }
        own = self._client.secret()
        # RFC 6749, section 2.3.1: both are coded like a form before they are put together.
        basic = httpx.USE_CLIENT_DEFAULT if own is None else (quote_plus(self._client.id), quote_plus(own))
        place = (await self._endpoints()).token_endpoint
        try:
            async with httpx.AsyncClient(timeout=FETCH_TIME.total_seconds()) as client:
                answer = await client.post(place, data=sent, headers={"Accept": "application/json"}, auth=basic)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError("the issuer does not answer", retry_after=ASKED) from error
        if not answer.is_success or len(answer.content) > LARGEST:
            raise bad_token(f"the issuer does not take the code: it answers with {answer.status_code}")
        try:
            return msgspec.json.decode(answer.content, type=_Tokens)
        except msgspec.DecodeError:
            raise bad_token("the issuer does not answer with tokens") from None
