"""The public keys of an OpenID Connect issuer: fetched, kept, and dropped when the issuer drops them.

OpenID Connect Discovery 1.0 for where they are, RFC 7517 and RFC 8037 for their form.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.types import JWKDict
from msgspec import Struct

from app.errors import PqsError
from app.settings.types import LOOPBACK_NAMES

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERY = timedelta(minutes=5)  # between two fetches
AGAIN = timedelta(seconds=15)  # until the next fetch, after one that failed
ASKED = timedelta(seconds=30)  # in which an unknown key id causes one fetch at most
GOOD_FOR = timedelta(hours=24)  # how long the last good set counts
FETCH_TIME = timedelta(seconds=5)  # for a whole fetch
LARGEST = 256 * 1024  # bytes of a document
RSA_BITS = 2048  # of a modulus at least (RFC 7518, section 3.3)

# What signs by which key: the type of a key decides, so a token cannot talk anybody into another algorithm.
_RSA, _EC, _OKP = frozenset({"RS256", "PS256"}), frozenset({"ES256"}), frozenset({"EdDSA"})


class IssuerError(PqsError):
    """The issuer does not answer, or not with keys."""


class PublicKey(Struct, frozen=True):
    """A key that verifies signatures. `thumbprint` is the same for the same key, whatever it is called."""

    kid: str | None
    algorithms: frozenset[str]
    key: object
    thumbprint: bytes


class Issuer:
    """The keys of one issuer. `run` keeps them fresh; `clock` is monotonic, in seconds.

    `on_change` is called with the thumbprints of the keys that count, after each fetch.
    """

    def __init__(
        self,
        url: str,
        *,
        every: timedelta = EVERY,
        asked: timedelta = ASKED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self._every = every.total_seconds()
        self._asked = asked.total_seconds()
        self._clock = clock
        self.on_change: Callable[[frozenset[bytes]], None] | None = None
        self._keys: list[PublicKey] = []
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._is_down = False

    @property
    def is_known(self) -> bool:
        """Whether there is a set of keys that is not too old."""
        return self._clock() - self._fetched_at <= GOOD_FOR.total_seconds()

    def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The key of this id for this algorithm. Without an id: the only key for the algorithm, if it is the only."""
        fitting = [key for key in self._keys if algorithm in key.algorithms and kid in {None, key.kid}]
        return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None

    async def ask(self) -> None:
        """Fetch because of a key id that is not known, unless that was done a short while ago. Raises nothing."""
        if self._fetching is None:
            if self._clock() - self._asked_at < self._asked:
                return
            self._asked_at = self._clock()
        await self.refresh()

    async def refresh(self) -> bool:
        """Fetch now, together with whoever does so already. False: it failed, and the log has why."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        try:
            await asyncio.shield(self._fetching)
        except IssuerError:
            return False
        return True

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the keys fresh until `stop` is set. Errors are logged, and it goes on."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                wait = self._every if await self.refresh() else min(self._every, AGAIN.total_seconds())
                await asyncio.wait({stopping}, timeout=wait)
        finally:
            stopping.cancel()
            if self._fetching is not None:
                self._fetching.cancel()

    def _fetched(self, fetching: "asyncio.Task[None]") -> None:
        self._fetching = None
        if fetching.cancelled():
            return
        error = fetching.exception()
        if error is not None and not self._is_down:
            log.warning("the keys of %s cannot be fetched: %s; the last ones stay in force", self.url, error)
        if error is None and self._is_down:
            log.info("the keys of %s are fetched again", self.url)
        self._is_down = error is not None

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIME.total_seconds()):
                keys = await self._load()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
            raise IssuerError(f"{type(error).__name__}: {error}") from error
        self._keys = keys
        self._fetched_at = self._clock()
        if self.on_change is not None:
            self.on_change(frozenset(key.thumbprint for key in keys))

    async def _load(self) -> list[PublicKey]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with httpx.AsyncClient(follow_redirects=False, headers=headers) as client:
            place = f"{self.url.rstrip('/')}/.well-known/openid-configuration"
            about = await document_of(client, place, _About)
            if about.issuer != self.url:
                raise IssuerError(f"{place} is about another issuer, {about.issuer!r}")
            found = await document_of(client, about.jwks_uri, _Set)
        keys = [key for key in map(_public_key, found.keys) if key is not None]
        if found.keys and not keys:
            log.warning("none of the %d keys of %s is of a kind that counts here", len(found.keys), self.url)
        return keys


class _About(Struct):
    """What counts of a discovery document."""

    issuer: str
    jwks_uri: str


class _Set(Struct):
    """A JWK Set."""

    keys: list[dict[str, object]]


def is_protected(url: str) -> bool:
    """Whether what comes from this address is the issuer's: https, or http on loopback."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK_NAMES)


async def document_of(client: httpx.AsyncClient, url: str, kind: type[T]) -> T:
    if not is_protected(url):
        raise IssuerError(f"{url!r} is neither https nor on loopback")
    async with client.stream("GET", url) as answer:
        if answer.status_code != httpx.codes.OK:
            raise IssuerError(f"{url} answers with status {answer.status_code}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise IssuerError(f"{url} answers in a coding that was not asked for")
        content = bytearray()
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > LARGEST:
                raise IssuerError(f"{url} answers with more than {LARGEST:,} bytes")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise IssuerError(f"{url} does not answer with the document that belongs there: {error}") from None


def _public_key(jwk: JWKDict) -> PublicKey | None:
    """A key for signatures; None for one of another kind, for another use, or that is too weak."""
    kid, use, operations, algorithm = (jwk.get(name) for name in ("kid", "use", "key_ops", "alg"))
    if "d" in jwk or use not in {None, "sig"} or not isinstance(kid, str | None):
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    try:
        match jwk.get("kty"), jwk.get("crv"):
            case "RSA", _:
                key: object = RSAAlgorithm.from_jwk(jwk)
                algorithms, members = _RSA, ["e", "kty", "n"]
                if not isinstance(key, RSAPublicKey) or key.key_size < RSA_BITS:
                    return None
            case "EC", "P-256":
                key, algorithms, members = ECAlgorithm.from_jwk(jwk), _EC, ["crv", "kty", "x", "y"]
            case "OKP", "Ed25519":
                key, algorithms, members = OKPAlgorithm.from_jwk(jwk), _OKP, ["crv", "kty", "x"]
            case _:
                return None
    except (jwt.InvalidKeyError, ValueError, TypeError):
        return None
    if algorithm is not None:
        algorithms &= {algorithm}
    # RFC 7638: the members that make up the key, in alphabetical order.
    thumbprint = sha256(msgspec.json.encode({name: jwk[name] for name in members})).digest()
    return PublicKey(kid, algorithms, key, thumbprint) if algorithms else None
