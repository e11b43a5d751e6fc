"""Tokens of an OpenID issuer: which count, what they grant, and which are refused; against a real HTTP server."""

import asyncio
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from app.access import tokens
from app.access.cache import KeyCache
from app.access.guard import Guard
from app.access.issuer import Issuer
from app.access.principals import Principal, Scope
from app.access.refusals import UnauthenticatedError
from app.access.tokens import TokenTerms, TokenVerifier, terms_of
from app.errors import StartError, UnavailableError
from app.settings import Posture, read_settings
from app.settings.types import ALGORITHMS
from tests.access.issuing import AUDIENCE, Issuing, Signer, by_hand, issuing

ALL = frozenset(ALGORITHMS)


class Clock:
    """Seconds since 1970, or of a monotonic clock, that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture(scope="module")
def signers() -> dict[str, Signer]:
    """A key for each algorithm: RSA keys take long to make."""
    return {algorithm: Signer(f"key {algorithm}", algorithm) for algorithm in ALGORITHMS}


@pytest.fixture
def issuer(signers: dict[str, Signer]) -> Iterator[Issuing]:
    """An issuer with a key for each algorithm."""
    with issuing() as issuer:
        issuer.signers = list(signers.values())
        yield issuer


def verifier(issuer: Issuing, clock: Clock | None = None, **terms: Any) -> TokenVerifier:
    """A verifier for that issuer, which has not asked it for anything yet."""
    clock = clock or Clock()
    given = {"audience": AUDIENCE, "algorithms": ALL} | terms
    return TokenVerifier(Issuer(issuer.url, clock=clock), TokenTerms(**given), now=clock)


async def refusal(subject: TokenVerifier, token: bytes) -> str:
    """What is said of a token that is refused; it is not remembered."""
    with pytest.raises(UnauthenticatedError) as refused:
        await subject.verify(token)
    assert refused.value.headers == {"WWW-Authenticate": 'Bearer realm="pqs", error="invalid_token"'}
    assert subject.known(token) is None
    return str(refused.value)


# --- What counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_lets_its_subject_in(issuer: Issuing, signers: dict[str, Signer], algorithm: str) -> None:
    """By each algorithm; what is no scope of this service grants nothing."""
    subject = verifier(issuer)
    token = signers[algorithm].sign(issuer.claims())
    assert subject.known(token) is None
    principal = await subject.verify(token)
    assert principal.name == "oidc:node-7"
    assert principal.grant.scopes == {Scope.ENTITIES_READ}
    assert principal.grant.allows_every_domain()
    assert principal.grant.allows_key("any")
    assert subject.known(token) is principal


@pytest.mark.parametrize(
    ("claims", "path", "expected"),
    [
        ({"scope": "events:write entities:read"}, "scope", [Scope.EVENTS_WRITE, Scope.ENTITIES_READ]),
        ({"scope": ["events:write", 7, None]}, "scope", [Scope.EVENTS_WRITE]),
        ({"scope": None}, "scope", []),
        ({"scope": {"events:write": True}}, "scope", []),
        ({"realm": {"roles": ["events:write"]}}, "realm.roles", [Scope.EVENTS_WRITE]),
        ({"realm": {"a.b": {"roles": "events:write"}}}, "realm.a.b.roles", [Scope.EVENTS_WRITE]),
        ({"https://pqs.example/scopes": "events:write"}, "https://pqs.example/scopes", [Scope.EVENTS_WRITE]),
        ({"realm": "events:write"}, "realm.roles", []),
    ],
    ids=str,
)
async def test_scopes_are_text_or_a_list_at_a_path(
    issuer: Issuing, signers: dict[str, Signer], claims: dict[str, object], path: str, expected: list[Scope]
) -> None:
    """Wherever the issuer has them; of another form they grant nothing."""
    subject = verifier(issuer, scopes_claim=path)
    principal = await subject.verify(signers["ES256"].sign(issuer.claims(**claims)))
    assert principal.grant.scopes == set(expected)


async def test_scopes_may_be_mapped(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """Then the issuer's names grant what is set for them, and a name of this service's grants nothing."""
    given = {
        "oidc_issuer": issuer.url,
        "oidc_audience": AUDIENCE,
        "oidc_scopes_map": "admin=operations:read,admin=operations:write,view=entities:read",
        "oidc_scopes_claim": "groups",
        "oidc_domains_claim": "sites",
    }
    terms = terms_of(read_settings(given))
    subject = TokenVerifier(Issuer(issuer.url), terms)
    claims = issuer.claims(groups=["admin", "events:write", "other"], sites=["a", "b"])
    principal = await subject.verify(signers["ES256"].sign(claims))
    assert principal.grant.scopes == {Scope.OPERATIONS_READ, Scope.OPERATIONS_WRITE}
    assert principal.grant.domains == {"a", "b"}
    with pytest.raises(
        StartError, match=r"^PQS_OIDC_SCOPES_MAP: there is no scope nodes:read; there are events:write, "
    ):
        terms_of(read_settings(given | {"oidc_scopes_map": "a=nodes:read"}))


@pytest.mark.parametrize(
    ("claims", "expected"), [({}, set()), ({"d": "a b"}, {"a", "b"}), ({"d": ["a b"]}, {"a b"}), ({"d": "*"}, {"*"})]
)
async def test_domains_are_in_their_claim(
    issuer: Issuing, signers: dict[str, Signer], claims: dict[str, object], expected: set[str]
) -> None:
    """Where a claim is set and a token does not have it, it covers no domain."""
    subject = verifier(issuer, domains_claim="d")
    principal = await subject.verify(signers["ES256"].sign(issuer.claims(**claims)))
    assert principal.grant.domains == expected


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, ()),
        ({"p": "team/ x"}, ("team/", "x")),
        ({"p": ["a b/"]}, ("a b/",)),
        ({"p": ["a/", "*"]}, ("",)),
        ({"p": "*"}, ("",)),
        ({"p": ["", 1]}, ()),
        ({"p": True}, ()),
    ],
)
async def test_workflow_prefixes_are_in_their_claim(
    issuer: Issuing, signers: dict[str, Signer], claims: dict[str, object], expected: tuple[str, ...]
) -> None:
    """Where a claim is set and a token does not have it, it covers no workflow; an empty name grants nothing."""
    given = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE, "oidc_prefixes_claim": "p"}
    subject = TokenVerifier(Issuer(issuer.url), terms_of(read_settings(given)))
    principal = await subject.verify(signers["ES256"].sign(issuer.claims(**claims)))
    assert principal.grant.prefixes == expected
    every = await verifier(issuer).verify(signers["ES256"].sign(issuer.claims(**claims)))
    assert every.grant.prefixes == ("",)


async def test_one_of_several_audiences_will_do(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """The list must contain this one."""
    token = signers["ES256"].sign(issuer.claims(aud=["another", AUDIENCE]))
    assert isinstance(await verifier(issuer).verify(token), Principal)


async def test_without_a_key_id_the_only_key_counts(issuer: Issuing) -> None:
    """One key for the algorithm will do; of two, nobody can say which."""
    nameless = Signer(None, "ES256")
    token = nameless.sign(issuer.claims())
    issuer.signers = [Signer("rsa", "RS256"), nameless]
    assert isinstance(await verifier(issuer).verify(token), Principal)
    issuer.signers.append(Signer("another", "ES256"))
    assert "does not list" in await refusal(verifier(issuer), token)


# --- What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exp", "iss", "aud", "sub"])
async def test_what_must_be_present(issuer: Issuing, signers: dict[str, Signer], name: str) -> None:
    """A token without it is refused, and the reason names it."""
    said = await refusal(verifier(issuer), signers["ES256"].sign(issuer.claims(**{name: None})))
    assert name in said


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"iss": "https://another.example"}, "of another issuer"),
        ({"aud": "another"}, "for another audience"),
        ({"aud": ["pqs2"]}, "for another audience"),
        ({"aud": []}, "for another audience"),
        ({"aud": 7}, "another form"),
        ({"sub": ""}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"sub": "x" * 256}, "subject"),
        ({"sub": 7}, "another form"),
        ({"exp": "soon"}, "another form"),
        ({"exp": 1e15, "nbf": 1e14}, "not valid yet"),
        ({"exp": -1}, "has expired"),
    ],
    ids=str,
)
async def test_claims_that_do_not_count(
    issuer: Issuing, signers: dict[str, Signer], claims: dict[str, Any], said: str
) -> None:
    """Signed by the right key, and still refused."""
    whole = issuer.claims() | claims
    header = {"alg": "ES256", "kid": signers["ES256"].kid}
    signed = by_hand(header, whole).rpartition(b".")[0]
    signature = jwt.algorithms.get_default_algorithms()["ES256"].sign(signed, signers["ES256"].key)
    assert said in await refusal(verifier(issuer), by_hand(header, whole, signature))


@pytest.mark.parametrize("exp", [10**400, 1e300])
async def test_an_end_beyond_all_calendars_is_far_away(
    issuer: Issuing, signers: dict[str, Signer], exp: float
) -> None:
    """A number that no clock reaches breaks nothing."""
    clock = Clock()
    subject = verifier(issuer, clock)
    try:
        assert isinstance(await subject.verify(signers["ES256"].sign(issuer.claims(exp=exp))), Principal)
    except UnauthenticatedError as error:
        assert "damaged" in str(error) or "another form" in str(error)  # noqa: PT017


async def test_clocks_may_differ_by_the_leeway(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """30 seconds after its end, or before its beginning, a token counts; a second more, and it does not."""
    clock = Clock()
    subject = verifier(issuer, clock)
    now = int(clock.now)
    clock.now = float(now)
    sign = signers["ES256"].sign
    assert isinstance(await subject.verify(sign(issuer.claims(exp=now - 29))), Principal)
    assert isinstance(await subject.verify(sign(issuer.claims(nbf=now + 30))), Principal)
    assert "expired" in await refusal(subject, sign(issuer.claims(exp=now - 30)))
    assert "not valid yet" in await refusal(subject, sign(issuer.claims(nbf=now + 31)))


async def test_another_algorithm_than_the_keys_is_refused(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """A public key is no secret for HMAC; `none` signs nothing; an algorithm belongs to a type of key."""
    subject = verifier(issuer)
    public = signers["RS256"].key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = issuer.claims()
    for secret in (pem, json.dumps(signers["RS256"].jwk).encode(), b""):
        header = {"alg": "HS256", "kid": signers["RS256"].kid}
        signed = by_hand(header, claims).rpartition(b".")[0]
        forged = by_hand(header, claims, hmac.digest(secret, signed, sha256))
        assert "algorithm" in await refusal(subject, forged)
    for algorithm in ("none", "None", "NONE", "", "HS512", "RS1", "ES512"):
        forged = by_hand({"alg": algorithm, "kid": signers["RS256"].kid}, claims)
        assert "algorithm" in await refusal(subject, forged)
    for algorithm, kid in (("ES256", "RS256"), ("EdDSA", "ES256"), ("RS256", "EdDSA")):
        forged = by_hand({"alg": algorithm, "kid": signers[kid].kid}, claims)
        assert "does not list" in await refusal(subject, forged)


async def test_an_algorithm_that_is_not_set_is_refused(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """Although the key is the issuer's, and the signature right."""
    subject = verifier(issuer, algorithms=frozenset({"EdDSA"}))
    assert "algorithm" in await refusal(subject, signers["RS256"].sign(issuer.claims()))
    assert isinstance(await subject.verify(signers["EdDSA"].sign(issuer.claims())), Principal)


@pytest.mark.parametrize(
    "listed",
    [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"alg": "PS256"}, {"alg": "HS256"}, {"kty": "oct", "k": "c2VjcmV0"}],
    ids=str,
)
async def test_a_key_for_something_else_does_not_count(issuer: Issuing, listed: dict[str, object]) -> None:
    """A key is used for what the issuer lists it for."""
    signer = Signer("k", "RS256", **listed)
    issuer.signers = [signer, Signer("other", "ES256")]
    assert "does not list" in await refusal(verifier(issuer), signer.sign(issuer.claims()))


async def test_a_weak_key_does_not_count(issuer: Issuing) -> None:
    """RSA has 2,048 bits at least (RFC 7518)."""
    from tests.access.issuing import rsa_key  # noqa: PLC0415

    weak = Signer("k", "RS256", rsa_key(1024))
    issuer.signers = [weak]
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = weak.sign(issuer.claims())
    assert "does not list" in await refusal(verifier(issuer), token)


async def test_a_wrong_signature_is_refused(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """One of another key under the same id, one of other claims, and one that was cut."""
    subject = verifier(issuer)
    for algorithm, signer in signers.items():
        forged = Signer(signer.kid, algorithm).sign(issuer.claims())
        assert "signature" in await refusal(subject, forged)
        good, other = signer.sign(issuer.claims()), signer.sign(issuer.claims(sub="admin"))
        exchanged = b".".join([*other.split(b".")[:2], good.split(b".")[2]])
        assert "signature" in await refusal(subject, exchanged)
        assert "signature" in await refusal(subject, good[:-8])


@pytest.mark.parametrize("extra", [{"crit": ["exp"]}, {"crit": []}, {"crit": None}, {"crit": ["b64"], "b64": False}])
async def test_critical_header_fields_are_refused(
    issuer: Issuing, signers: dict[str, Signer], extra: dict[str, object]
) -> None:
    """This service knows none (RFC 7515, section 4.1.11)."""
    token = by_hand({"alg": "ES256", "kid": signers["ES256"].kid} | extra, issuer.claims())
    assert "critical" in await refusal(verifier(issuer), token)


async def test_keys_in_the_header_do_not_count(issuer: Issuing) -> None:
    """Nor do addresses of keys: nobody fetches what a token names."""
    attacker = Signer("mine", "RS256")
    header = {"jwk": attacker.jwk, "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/"}
    assert "does not list" in await refusal(verifier(issuer), attacker.sign(issuer.claims(), **header))


@pytest.mark.parametrize(
    "token",
    [
        b"a.b",
        b"a.b.c.d.e",
        b"a..c",
        b"!.b.c",
        b"e30.e30.e30",
        b"bnVsbA.e30.e30",
        urlsafe_b64encode(b"[" * 3000).rstrip(b"=") + b".e30.e30",
        urlsafe_b64encode(b'{"alg":7}').rstrip(b"=") + b".e30.e30",
        b"x" * 5 + b"." + b"y" * 5 + b".z",
    ],
    ids=lambda token: token[:12].decode(),
)
async def test_what_is_no_token_is_refused(issuer: Issuing, token: bytes) -> None:
    """Without an error of another kind."""
    assert await refusal(verifier(issuer), token)


async def test_a_token_has_8_kib_at_most(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """A longer one is refused before anything is done with it."""
    subject = verifier(issuer)
    assert "longer than 8,192 bytes" in await refusal(subject, signers["RS256"].sign(issuer.claims(more="x" * 7000)))
    assert issuer.requests == 0
    assert isinstance(await subject.verify(signers["RS256"].sign(issuer.claims(more="x" * 5000))), Principal)


# --- What is remembered ----------------------------------------------------------------------------------------


async def test_a_token_is_remembered_for_five_minutes_at_most(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """Or until it ends."""
    clock = Clock()
    subject = verifier(issuer, clock)
    token = signers["ES256"].sign(issuer.claims())
    short = signers["ES256"].sign(issuer.claims(exp=int(clock.now) + 60))
    await subject.verify(token)
    await subject.verify(short)
    clock.now += 91
    assert subject.known(short) is None
    assert subject.known(token) is not None
    clock.now += 210
    assert subject.known(token) is None
    assert isinstance(await subject.verify(token), Principal)


async def test_the_number_of_tokens_is_bounded(
    issuer: Issuing, signers: dict[str, Signer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes first, and is verified again."""
    monkeypatch.setattr(tokens, "REMEMBERED", 3)
    subject = verifier(issuer)
    made = [signers["EdDSA"].sign(issuer.claims(sub=f"n{number}")) for number in range(5)]
    for token in made:
        await subject.verify(token)
    assert [subject.known(token) is not None for token in made] == [False, False, True, True, True]


async def test_keys_that_vanish_stop_counting_at_once(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """With the fetch that no longer finds them; tokens by other keys stay remembered, whatever a key is called."""
    endpoint = Issuer(issuer.url)
    subject = TokenVerifier(endpoint, TokenTerms(audience=AUDIENCE, algorithms=ALL))
    leaked, good = signers["RS256"].sign(issuer.claims()), signers["ES256"].sign(issuer.claims())
    await subject.verify(leaked)
    await subject.verify(good)
    issuer.signers = [Signer(signers["RS256"].kid, "RS256"), signers["ES256"]]
    assert await endpoint.refresh()
    assert subject.known(leaked) is None
    assert subject.known(good) is not None
    assert "signature" in await refusal(subject, leaked)


# --- In the guard ----------------------------------------------------------------------------------------------


async def test_the_guard_knows_tokens_beside_keys(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """The first time it has to wait; from then on it knows at once."""
    guard = Guard(Posture.REQUIRED, KeyCache("postgresql://127.0.0.1:1/x"), verifier(issuer))
    authorization = b"Bearer " + signers["ES256"].sign(issuer.claims())
    assert guard.known(authorization) is None
    principal = await guard.authenticate([(b"authorization", authorization)])
    assert isinstance(principal, Principal)
    assert guard.known(authorization) is principal
    refused = await guard.authenticate([(b"authorization", b"Bearer a.b.c")])
    assert isinstance(refused, UnauthenticatedError)
    issuer.status = 500
    away = Guard(Posture.REQUIRED, KeyCache("postgresql://127.0.0.1:1/x"), verifier(issuer))
    assert isinstance(await away.authenticate([(b"authorization", authorization)]), UnavailableError)


async def test_many_at_once_cause_one_fetch(issuer: Issuing, signers: dict[str, Signer]) -> None:
    """Whoever comes meanwhile waits for the same one."""
    issuer.delay = 0.05
    subject = verifier(issuer)
    made = [signers["EdDSA"].sign(issuer.claims(sub=f"n{number}")) for number in range(20)]
    found = await asyncio.gather(*(subject.verify(token) for token in made))
    assert {principal.name for principal in found} == {f"oidc:n{number}" for number in range(20)}
    assert issuer.requests == 1


def test_terms_are_those_that_are_set() -> None:
    """By default: every algorithm but HMAC, the claim `scope`, every domain, 30 seconds."""
    settings = read_settings({"oidc_issuer": "https://i.example", "oidc_audience": "a"})
    assert terms_of(settings) == TokenTerms(audience="a", algorithms=ALL)
    other = terms_of(
        read_settings(
            {"oidc_issuer": "https://i.example", "oidc_audience": "a", "oidc_algorithms": "ES256", "oidc_leeway": "0"}
        )
    )
    assert other == replace(terms_of(settings), algorithms=frozenset({"ES256"}), leeway=timedelta(0))
