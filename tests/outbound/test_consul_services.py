"""A node as a service of Consul: its name, address, port, mark and check."""

from datetime import timedelta
from typing import Any

import pytest

from app.domain.intents import RegisterService
from app.outbound.consul.services import Profile, address_of, body_of, described, name_of, profile_of
from app.settings import read_settings
from tests.consul import NAME, faults_of
from tests.making import NODE, Json

ONE_PATH = Profile(address=("network", "endpoint"), port=None)


def node(**changes: Any) -> RegisterService:
    """A node to register."""
    fields: Json = {"entity_id": NODE, "domain": "edge", "node_type": "gpu", "tags": ("a", "b"), "version": 3}
    return RegisterService(**fields | changes)


def test_a_registration_has_what_a_client_of_consul_needs() -> None:
    """Address and port, tags, the mark, and a check that fails without renewal and then ends the service."""
    profile = Profile(mark="blue", ttl=timedelta(seconds=7.5), deregister_after=timedelta(minutes=2))
    body = body_of(node(capabilities={"address": "10.0.0.7", "port": 8080}, passing=True), profile)
    assert body == {
        "ID": f"edge.{NODE}",
        "Name": "gpu",
        "Tags": ["a", "b"],
        "Address": "10.0.0.7",
        "Port": 8080,
        "Meta": {"registered_by": "blue", "domain": "edge", "version": "3"},
        "Check": {
            "CheckID": f"service:edge.{NODE}",
            "Name": "liveness",
            "TTL": "7500ms",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": "120000ms",
        },
    }
    assert faults_of(body) == []


def test_a_node_that_is_not_active_yet_does_not_pass() -> None:
    """Its check begins as critical, so no client of Consul finds it."""
    assert body_of(node(), Profile())["Check"] | {"Status": "critical"} == body_of(node(), Profile())["Check"]  # type: ignore[operator]  # it is a dict


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"address": "10.0.0.7", "port": 8080}, ("10.0.0.7", 8080)),
        ({"address": "node-7.example", "port": "8080"}, ("node-7.example", 8080)),
        ({"address": "[fd00::7]", "port": 1}, ("fd00::7", 1)),
        ({"address": "10.0.0.7"}, ("10.0.0.7", None)),
        ({"port": 65_535}, (None, 65_535)),
        ({"address": "", "port": 0}, (None, None)),
        ({"address": "0.0.0.0", "port": 65_536}, (None, None)),
        ({"address": "::", "port": True}, (None, None)),
        ({"address": "a b", "port": "80a"}, (None, None)),
        ({"address": ["10.0.0.7"], "port": 80.5}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_the_address_is_found_in_the_capabilities(capabilities: Json, found: tuple[str | None, int | None]) -> None:
    """A part that nobody could use counts as missing: Consul then has its agent's address, or no port."""
    assert address_of(capabilities, Profile()) == found


@pytest.mark.parametrize(
    ("endpoint", "found"),
    [
        ("10.0.0.7:8080", ("10.0.0.7", 8080)),
        ("[fd00::7]:8080", ("fd00::7", 8080)),
        ("node-7.example", ("node-7.example", None)),
        ("fd00::7", ("fd00::7", None)),
        ("10.0.0.7:99999", ("10.0.0.7", None)),
        (7, (None, None)),
    ],
)
def test_one_path_leads_to_address_and_port(endpoint: object, found: tuple[str | None, int | None]) -> None:
    """PQS_CONSUL_ADDRESS_FROM with one path: the text there has both."""
    assert address_of({"network": {"endpoint": endpoint}}, ONE_PATH) == found
    assert address_of({"network": endpoint}, ONE_PATH) == (None, None)


def test_the_settings_say_how_nodes_are_registered() -> None:
    """Paths, mark and times."""
    url = {"consul_url": "http://127.0.0.1:1"}
    given = {"consul_mark": "blue", "consul_ttl": "30", "consul_remove_after": "60"}
    assert profile_of(read_settings(url)) == Profile()
    assert profile_of(read_settings(url | given | {"consul_address_from": "network.endpoint"})) == Profile(
        "blue", ("network", "endpoint"), None, timedelta(seconds=30), timedelta(seconds=60)
    )
    assert profile_of(read_settings(url | {"consul_address_from": "net.ip,net.port"})).port == ("net", "port")


@pytest.mark.parametrize("node_type", ["gpu", "GPU-2", "x" * 63, "7"])
def test_a_type_that_fits_dns_is_the_name(node_type: str) -> None:
    """As it is."""
    assert name_of(node_type) == node_type
    assert "node_type" not in described(node(node_type=node_type), Profile()).meta


@pytest.mark.parametrize(
    "node_type",
    ["gpu_a100", "gpu.a100", "a b", "x" * 64, "-gpu", "gpu-", "ü", "a/b", "_", 'a"b', "x" * 54 + "." + "y" * 9],
)
def test_a_type_that_does_not_fit_dns_gets_a_name_that_does(node_type: str) -> None:
    """The name is a DNS label, and Meta has the type."""
    assert NAME.fullmatch(name_of(node_type))
    assert described(node(node_type=node_type), Profile()).meta["node_type"] == node_type


def test_fitted_names_differ() -> None:
    """Types that look alike once they are fitted are still different services."""
    types = ["gpu_a", "gpu.a", "gpu a", "gpu-a", "_gpu-a", "ü", "ä", "x" * 64, "x" * 63 + "y"]
    assert len({name_of(each) for each in types}) == len(types)


def test_the_largest_values_fit() -> None:
    """A domain of 128 characters of four bytes is as long as a value in Meta may be."""
    assert faults_of(body_of(node(domain="🜁" * 128, node_type="🜁" * 64), Profile())) == []
