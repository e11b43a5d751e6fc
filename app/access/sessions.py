"""The sessions of people in a browser: a cookie stands for the key or the token with which they signed in.

A session that was begun with a key has the rights of the key, as they are now, and ends with it: when the key is
revoked or expires. One that was begun with a token of OpenID Connect has the rights that this token granted. Every
session ends at sign-out, and after eight hours. The cookie holds 256 random bits, and the database SHA-256 of them.
"""

import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256
from hmac import compare_digest

from app.access import refusals
from app.access.cache import KeyCache
from app.access.principals import Grant, Principal, scopes_of
from app.errors import PqsError, UnavailableError
from app.store import sign_ins
from app.store.audit import Act
from app.store.database import Database
from app.store.sign_ins import SignIn

COOKIE = "__Host-pqs"
TOKEN_HEADER = b"pqs-token"  # the header of unsafe calls, whose value a foreign page cannot know
LASTS = timedelta(hours=8)
FLOW_COOKIE = "__Host-pqs-flow"  # what is remembered while somebody signs in at an issuer
FLOW_LASTS = timedelta(minutes=10)
COUNTS_FOR = 2.0  # seconds for which a look into the table counts
MOST = 1000  # sessions, known or not, that are remembered
SECRET_BYTES = 32

_IN_COOKIES = re.compile(rb"(?:^|;[ \t]*)__Host-pqs=([A-Za-z0-9_-]{43})[ \t]*(?:;|$)")


def secret_in(cookies: bytes) -> bytes | None:
    """The secret in the value of a `Cookie` header; None where there is none."""
    found = _IN_COOKIES.search(cookies)
    return found[1] if found else None


def token_of(secret: bytes) -> str:
    """What unsafe calls of this session say in the header `PQS-Token`. It does not tell the secret."""
    return urlsafe_b64encode(sha256(b"token of " + secret).digest()).rstrip(b"=").decode()


def has_token(secret: bytes, given: bytes | None) -> bool:
    """Whether a call says the token of its session."""
    return given is not None and compare_digest(given, token_of(secret).encode())


class Sessions:
    """The sessions of one database, for one worker. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        database: Database,
        keys: KeyCache,
        *,
        random: Callable[[int], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._keys = keys
        self._random = random
        self._clock = clock
        self._seen: dict[bytes, tuple[tuple[SignIn, datetime] | None, float]] = {}

    async def begin(self, sign_in: SignIn, lasts: timedelta, act: Act) -> bytes:
        """Begin a session that lasts so long at most; returns the cookie's secret. Raises UnavailableError."""
        secret = urlsafe_b64encode(self._random(SECRET_BYTES)).rstrip(b"=")
        await self._database.write(sign_ins.begin, sha256(secret).digest(), sign_in, min(lasts, LASTS), act)
        return secret

    async def find(self, secret: bytes) -> Principal | PqsError:
        """The principal of a session. Or the error with which the request is answered."""
        digest, now = sha256(secret).digest(), self._clock()
        known, until = self._seen.get(digest, (None, now))
        if until <= now:
            try:
                known = await self._database.read(sign_ins.get, digest)
            except UnavailableError as error:
                return error
            if len(self._seen) >= MOST:
                self._seen.clear()
            self._seen[digest] = known, now + COUNTS_FOR
        if known is None or known[1].timestamp() <= time.time():
            return refusals.bad_token("this session has ended: sign in again")
        sign_in, end = known
        return self._of_key(sign_in.key_id) if sign_in.key_id is not None else _of_token(sign_in, end)

    def _of_key(self, key_id: str) -> Principal | PqsError:
        try:
            held = self._keys.find_id(key_id.encode())
        except UnavailableError as error:
            return error
        if held is None or held.expires_at <= time.time():
            return refusals.bad_token("the key of this session has been revoked or has expired")
        held.used = True
        return held.principal

    async def end(self, secret: bytes) -> None:
        """End a session: here at once, elsewhere within two seconds. Raises UnavailableError."""
        digest = sha256(secret).digest()
        await self._database.write(sign_ins.end, digest)
        self._seen.pop(digest, None)


def _of_token(sign_in: SignIn, end: datetime) -> Principal:
    domains, prefixes = frozenset(sign_in.domains), tuple(sign_in.workflow_prefixes)
    return Principal(sign_in.principal or "", Grant(scopes_of(sign_in.scopes), domains, prefixes, end.timestamp()))
