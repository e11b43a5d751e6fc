"""The front of access: from a request's header fields to a principal, or to the refusal.

Nothing here logs a header field, at any level, and no refusal repeats one.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from app.access import refusals
from app.access.cache import HeldKey, KeyCache
from app.access.keys import KEY_PREFIX, digest_of, id_in
from app.access.posture import forwarded, is_forwarding
from app.access.principals import ANYONE, Principal
from app.access.refusals import AuthError
from app.access.sessions import Sessions, secret_in
from app.errors import PqsError, UnavailableError
from app.settings import Posture

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case, as ASGI has them

_IN_QUERY = re.compile(rb"(?:^|[&;])access_token=")  # RFC 6750, section 2.3: a URL is written to logs
_TOKEN = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/=-]+) *")


class Tokens(Protocol):
    """Who verifies tokens that are not keys, see `tokens.py`."""

    def known(self, token: bytes) -> Principal | None:
        """The principal of a token that was verified before."""

    def verify(self, token: bytes) -> Awaitable[Principal]:
        """The principal of a token. Raises UnauthenticatedError, or UnavailableError when nobody can tell."""


class Guard:
    """Says who a caller is. `keys` is needed in the posture `required`; `tokens` where an issuer is set.

    `sessions` are those of browsers, if there are any. `now` is in seconds since 1970.
    """

    def __init__(
        self,
        posture: Posture,
        keys: KeyCache | None = None,
        tokens: Tokens | None = None,
        sessions: Sessions | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        if posture is Posture.REQUIRED and keys is None:
            raise ValueError("a service that asks for keys has to know them")
        self._is_open = posture is not Posture.REQUIRED
        self._refuses_proxies = posture is Posture.LOOPBACK
        self._keys = keys
        self._tokens = tokens
        self.sessions = sessions
        self._now = now

    @property
    def refuses_proxies(self) -> bool:
        """Whether requests with `Forwarded` or `X-Forwarded-*` are refused, and those from other machines."""
        return self._refuses_proxies

    def known(self, authorization: bytes | None) -> Principal | PqsError | None:
        """What is to be said at once of an `Authorization` field's value (None: there is none).

        A key, known or not, is decided here, and so is a token that was verified before. None: `resolve` has to be
        awaited. The error is an AuthError, or UnavailableError when the database has been away for too long.
        """
        if self._is_open:
            return ANYONE
        if authorization is None:
            return refusals.no_token()
        if authorization[:11] == b"Bearer pqs_":
            return self._of_key(authorization[7:])
        token = _token_in(authorization)
        if token is None:
            return refusals.bad_token("the Authorization header has to be `Bearer` and a key or token")
        if token[:4] == KEY_PREFIX:
            return self._of_key(token)
        if self._tokens is None:
            return refusals.bad_token("this is not a key of this service")
        return self._tokens.known(token)

    def key_in(self, authorization: bytes | None) -> HeldKey | None:
        """The good key in an `Authorization` field's value, to be kept by who sees the same value again."""
        if self._is_open or authorization is None or self._keys is None:
            return None
        token = _token_in(authorization)
        found = self._find(token) if token is not None and token[:4] == KEY_PREFIX else None
        return found if isinstance(found, HeldKey) else None

    def still_knows(self, held: HeldKey) -> bool:
        """Whether a key that was found by `key_in` is still good: all that `known` checks, without the digest.

        A revocation counts here as soon as there: the cache marks what it held when it reads the keys anew.
        """
        keys = self._keys
        if keys is None or not held.is_current or held.expires_at <= self._now() or keys.clock() > keys.fresh_until:
            return False
        held.used = True
        return True

    async def resolve(self, authorization: bytes) -> Principal | PqsError:
        """What is to be said of a token that `known` does not know yet: its signature is checked, once."""
        token = _token_in(authorization)
        if token is None or self._tokens is None:
            return refusals.bad_token("this is not a key of this service")
        try:
            return await self._tokens.verify(token)
        except (AuthError, UnavailableError) as error:
            return error

    async def authenticate(self, headers: Headers, query: bytes = b"") -> Principal | PqsError:
        """The principal of a request, or the error that it is answered with. `query` is what follows the `?`."""
        authorization: bytes | None = None
        secret: bytes | None = None
        for name, value in headers:
            if name == b"authorization":
                if authorization is not None and not self._is_open:
                    return refusals.bad_token("there are two Authorization headers")
                authorization = value
            elif name == b"cookie" and self.sessions is not None:
                secret = secret_in(value) or secret
            elif self._refuses_proxies and is_forwarding(name):
                return forwarded()
        if not self._is_open and query and _IN_QUERY.search(query):
            return refusals.bad_token("a token in the query is refused: send it in the Authorization header")
        if authorization is None and secret is not None and self.sessions is not None:
            return await self.sessions.find(secret)
        found = self.known(authorization)
        if found is None and authorization is not None:
            return await self.resolve(authorization)
        return found or refusals.no_token()

    def _of_key(self, token: bytes) -> Principal | PqsError:
        found = self._find(token)
        return found.principal if isinstance(found, HeldKey) else found

    def _find(self, token: bytes) -> HeldKey | PqsError:
        digest = digest_of(token)
        if digest is None:
            return refusals.bad_token("this key has a typing error: its checksum does not fit")
        assert self._keys is not None  # noqa: S101 - checked when this was made
        try:
            held = self._keys.find(digest)
        except UnavailableError as error:
            return error
        if held is None or held.id != id_in(token):
            return refusals.bad_token("this key is not known: it may have been revoked or have expired")
        if held.expires_at <= self._now():
            return refusals.bad_token("this key has expired")
        held.used = True
        return held


def _token_in(authorization: bytes) -> bytes | None:
    """The token of a field value of the form `Bearer <token>` (RFC 6750, section 2.1)."""
    found = _TOKEN.fullmatch(authorization)
    return found[1] if found else None
