"""Tokens of an OpenID Connect issuer (RFC 7519, RFC 8725): verified once, and remembered.

This module and `issuer.py` need the extra `oidc`; nothing imports them unless an issuer is set.
"""

import re
import time
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import TypeVar

import msgspec
from jwt.algorithms import Algorithm, get_default_algorithms
from msgspec import UNSET, Raw, Struct, UnsetType

from app.access.issuer import Issuer
from app.access.principals import EVERY_DOMAIN, EVERY_KEY, Grant, Principal, Scope, scopes_of
from app.access.refusals import bad_token
from app.errors import StartError, UnavailableError
from app.settings import Settings

EVERY = "*"  # every workflow, as issuers and the command line write it
LARGEST = 8 * 1024  # bytes of a token
REMEMBERED = 10_000  # tokens
REMEMBERED_FOR = 300.0  # seconds at most
LATEST_EXPIRY = 253_370_764_799  # seconds since 1970: the end of the year 9998
LONGEST_SUBJECT = 255  # characters (OpenID Connect Core, section 2)

T = TypeVar("T")

_FORM = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_STANDARD = bytes.maketrans(b"-_", b"+/")


class _Header(Struct):
    """The part of a token's header that is used. Keys, and addresses of keys, in a header are ignored."""

    alg: str
    kid: str | None = None
    crit: Raw | UnsetType = UNSET


class _Claims(Struct):
    """What every token has to say, and when it begins to count."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: int | float
    nbf: int | float | None = None


class _Known(Struct, frozen=True):
    """A token that was verified: whose it is, until when that need not be checked again, and by which key."""

    principal: Principal
    until: float
    thumbprint: bytes


class TokenTerms(Struct, frozen=True, kw_only=True):
    """What a token has to be, and what its claims grant.

    `scopes_map` is None where the issuer's names are this service's. Without `domains_claim` a token covers every
    domain; with it, the domains that the claim lists. So does `prefixes_claim` for workflows.
    """

    audience: str
    algorithms: frozenset[str]
    scopes_claim: str = "scope"
    scopes_map: Mapping[str, frozenset[Scope]] | None = None
    domains_claim: str | None = None
    prefixes_claim: str | None = None
    leeway: timedelta = timedelta(seconds=30)


def terms_of(settings: Settings) -> TokenTerms:
    """The terms that are set. Raises StartError for a scope that does not exist."""
    scopes_map: dict[str, frozenset[Scope]] | None = None
    if settings.oidc_scopes_map is not None:
        scopes_map = {}
        for pair in settings.oidc_scopes_map.split(","):
            name, _, scope = pair.partition("=")
            granted = scopes_of([scope])
            if not granted:
                raise StartError(f"PQS_OIDC_SCOPES_MAP: there is no scope {scope}; there are {', '.join(Scope)}")
            scopes_map[name] = scopes_map.get(name, frozenset()) | granted
    return TokenTerms(
        audience=settings.oidc_audience or "",
        algorithms=frozenset(settings.oidc_algorithms.split(",")),
        scopes_claim=settings.oidc_scopes_claim,
        scopes_map=scopes_map,
        domains_claim=settings.oidc_domains_claim,
        prefixes_claim=settings.oidc_prefixes_claim,
        leeway=timedelta(seconds=settings.oidc_leeway),
    )


class TokenVerifier:
    """Verifies the tokens of one issuer, by the keys that it lists at the moment. `now` is in seconds since 1970."""

    def __init__(self, issuer: Issuer, terms: TokenTerms, *, now: Callable[[], float] = time.time) -> None:
        self._issuer = issuer
        self._terms = terms
        self._leeway = terms.leeway.total_seconds()
        self._now = now
        self._known: dict[bytes, _Known] = {}
        issuer.on_change = self.forget_others
        every = get_default_algorithms()
        self._algorithms: dict[str, Algorithm] = {name: every[name] for name in terms.algorithms}

    def known(self, token: bytes) -> Principal | None:
        """The principal of a token that was verified a short while ago."""
        found = self._known.get(sha256(token).digest())
        return found.principal if found is not None and found.until > self._now() else None

    def forget_others(self, thumbprints: frozenset[bytes]) -> None:
        """Stop trusting what was verified by other keys than these."""
        self._known = {digest: each for digest, each in self._known.items() if each.thumbprint in thumbprints}

    async def verify(self, token: bytes) -> Principal:
        """The principal of a token, which is remembered from then on.

        Raises UnauthenticatedError, which says what is wrong, and UnavailableError while no keys of the issuer are
        known.
        """
        if len(token) > LARGEST:
            raise bad_token(f"the token is longer than {LARGEST:,} bytes")
        parts = _FORM.fullmatch(token)
        if parts is None:
            raise bad_token("this is neither a key nor a signed token")
        header = _decoded(parts[1], _Header)
        if header.crit is not UNSET:
            raise bad_token("the token has critical header fields that this service does not know")
        if header.alg not in self._algorithms:
            raise bad_token("the token is signed by an algorithm that this service does not accept")
        key = self._issuer.find(header.kid, header.alg) if self._issuer.is_known else None
        if key is None:
            await self._issuer.ask()
            if not self._issuer.is_known:
                raise UnavailableError("tokens cannot be checked: the issuer has not said its keys")
            key = self._issuer.find(header.kid, header.alg)
        if key is None:
            raise bad_token("the token is signed by a key that the issuer does not list")
        signed, signature = token[: parts.end(2)], _bytes(parts[3])
        if not self._algorithms[header.alg].verify(signed, key.key, signature):
            raise bad_token("the signature of the token is wrong")
        principal, until = self._of_claims(parts[2])
        while len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[sha256(token).digest()] = _Known(principal, until, key.thumbprint)
        return principal

    def _of_claims(self, payload: bytes) -> tuple[Principal, float]:
        """The principal, and until when the token need not be looked at again."""
        claims = _decoded(payload, _Claims)
        now = self._now()
        if claims.iss != self._issuer.url:
            raise bad_token("the token is of another issuer")
        if self._terms.audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
            raise bad_token("the token is for another audience")
        if claims.exp <= now - self._leeway:
            raise bad_token("the token has expired")
        if claims.nbf is not None and claims.nbf > now + self._leeway:
            raise bad_token("the token is not valid yet")
        if not 0 < len(claims.sub) <= LONGEST_SUBJECT or not claims.sub.isprintable():
            raise bad_token("the token's subject is not 1 to 255 printable characters")
        until = min(claims.exp, LATEST_EXPIRY) + self._leeway
        every: dict[str, object] = _decoded(payload, dict)
        grant = Grant(self._scopes(every), self._domains(every), self._prefixes(every), until)
        return Principal(f"oidc:{claims.sub}", grant), min(until, now + REMEMBERED_FOR)

    def _scopes(self, claims: Mapping[str, object]) -> frozenset[Scope]:
        names = _words(_claim(claims, self._terms.scopes_claim))
        if self._terms.scopes_map is None:
            return scopes_of(names)
        granted = (self._terms.scopes_map.get(name, frozenset()) for name in names)
        return frozenset().union(*granted)

    def _domains(self, claims: Mapping[str, object]) -> frozenset[str]:
        if self._terms.domains_claim is None:
            return frozenset({EVERY_DOMAIN})
        return frozenset(_words(_claim(claims, self._terms.domains_claim)))

    def _prefixes(self, claims: Mapping[str, object]) -> tuple[str, ...]:
        if self._terms.prefixes_claim is None:
            return (EVERY_KEY,)
        names = _words(_claim(claims, self._terms.prefixes_claim))
        return (EVERY_KEY,) if EVERY in names else tuple(names)


def _bytes(part: bytes) -> bytes:
    """What base64url stands for."""
    try:
        return a2b_base64(part.translate(_STANDARD) + b"=" * (-len(part) % 4), strict_mode=True)
    except Base64Error:
        raise bad_token("the token is damaged") from None


def _decoded(part: bytes, kind: type[T]) -> T:
    content = _bytes(part)
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise bad_token(f"the token lacks something, or says it in another form: {_safe(error)}") from None
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise bad_token("the token is damaged") from None


def _safe(error: msgspec.ValidationError) -> str:
    """What msgspec says: names of fields and types, without values."""
    return str(error).replace("`", "")


def _claim(claims: Mapping[str, object], path: str) -> object:
    """The value at a dotted path. A name that has dots itself counts first, as in https://pqs.example/scopes."""
    if path in claims:
        return claims[path]
    for end in range(len(path)):
        inner = claims.get(path[:end]) if path[end] == "." else None
        if isinstance(inner, dict) and (found := _claim(inner, path[end + 1 :])) is not None:
            return found
    return None


def _words(value: object) -> Sequence[str]:
    """The words of a claim that is text, with blanks between, or a list."""
    if isinstance(value, str):
        return value.split()
    return [each for each in value if isinstance(each, str) and each] if isinstance(value, list) else []


def verifier_of(settings: Settings) -> tuple[TokenVerifier, Issuer]:
    """The verifier of the issuer that is set, and that issuer, whose `run` keeps its keys fresh."""
    issuer = Issuer(settings.oidc_issuer or "")
    return TokenVerifier(issuer, terms_of(settings)), issuer
