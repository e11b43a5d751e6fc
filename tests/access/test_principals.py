"""Rights: what a grant covers, and what is said of a call that it does not cover."""

from hypothesis import given
from hypothesis import strategies as st

from app.access import rights
from app.access.principals import ANYONE, EVERY_DOMAIN, EVERY_KEY, Grant, Principal, Scope, scopes_of

READER = Grant(frozenset({Scope.ENTITIES_READ}), frozenset({"a", "b"}), ("team/", "x"))
SCOPES = st.sampled_from(list(Scope))
NAMES = st.text(min_size=1, max_size=8)


def holder(grant: Grant) -> Principal:
    """A caller with these rights."""
    return Principal("key:test", grant)


@given(st.frozensets(SCOPES), SCOPES)
def test_a_scope_is_granted_or_not(scopes: frozenset[Scope], scope: Scope) -> None:
    """No scope includes another."""
    assert (rights.scope(holder(Grant(scopes)), scope) is None) is (scope in scopes)


@given(st.frozensets(NAMES), NAMES)
def test_a_domain_is_covered_by_its_name(domains: frozenset[str], domain: str) -> None:
    """To the letter, or by the star."""
    grant = Grant(frozenset(Scope), domains)
    covered = domain in domains or "*" in domains
    assert grant.allows_domain(domain) is covered
    assert (rights.domain(holder(grant), Scope.ENTITIES_READ, domain) is None) is covered


@given(st.lists(st.text(max_size=3)).map(tuple), NAMES)
def test_a_workflow_is_covered_by_a_beginning(prefixes: tuple[str, ...], key: str) -> None:
    """A key is covered when it begins with one of the prefixes; without any, none is."""
    grant = Grant(frozenset(Scope), prefixes=prefixes)
    covered = any(key[: len(prefix)] == prefix for prefix in prefixes)
    assert grant.allows_key(key) is covered
    assert (rights.workflow(holder(grant), Scope.WORKFLOWS_READ, key) is None) is covered


def test_nothing_is_granted_by_leaving_it_out() -> None:
    """A grant with scopes and nothing else covers no domain and no workflow."""
    grant = Grant(frozenset(Scope))
    assert not grant.allows_domain("registration")
    assert not grant.allows_every_domain()
    assert not grant.allows_key("k")


def test_only_the_star_covers_every_domain() -> None:
    """The names of all domains of today are not all domains."""
    assert not READER.allows_every_domain()
    assert Grant(frozenset(), frozenset({EVERY_DOMAIN})).allows_every_domain()
    assert Grant(frozenset(), prefixes=(EVERY_KEY,)).allows_key("any")


def test_what_is_no_scope_grants_nothing() -> None:
    """Names that this service does not know are passed over, whatever their case."""
    assert scopes_of(["entities:read", "openid", "ENTITIES:WRITE", "*", ""]) == {Scope.ENTITIES_READ}


def test_the_refusal_names_the_scope() -> None:
    """RFC 6750: `insufficient_scope`, and the scope that would do; no row has been looked for."""
    for refusal in (
        rights.scope(holder(READER), Scope.EVENTS_WRITE),
        rights.domain(holder(READER), Scope.EVENTS_WRITE, "a"),
        rights.every_domain(holder(READER), Scope.EVENTS_WRITE),
        rights.workflow(holder(READER), Scope.EVENTS_WRITE, "team/1"),
    ):
        assert refusal is not None
        assert refusal.headers == {
            "WWW-Authenticate": 'Bearer realm="pqs", error="insufficient_scope", scope="events:write"'
        }
        assert (refusal.status, refusal.type) == (403, "urn:pqs:problem:forbidden")
        assert str(refusal) == "this call needs the scope events:write"
    refusal = rights.domain(holder(READER), Scope.ENTITIES_READ, "c")
    assert str(refusal) == "this call needs the scope entities:read for the domain 'c'"
    assert rights.every_domain(holder(READER), Scope.ENTITIES_READ) is not None


def test_anyone_may_do_everything() -> None:
    """The caller of a service that asks nobody for a key."""
    for scope in Scope:
        assert rights.every_domain(ANYONE, scope) is None
        assert rights.workflow(ANYONE, scope, "any") is None
