"""The layers between a request and FastAPI, and the headers that they add to answers."""

import pytest
from fastapi import FastAPI, Response

from app.access.guard import Guard
from app.api.edge import Edge
from app.api.hosts import Hosts
from app.api.methods import Allowed
from app.api.origins import Origins
from app.errors import ForeignOriginError, MisdirectedError
from app.settings import Posture
from tests.api.asking import ask

served = FastAPI()


@served.post("/retry")
async def retry() -> Response:
    """A route that needs no body."""
    return Response(b"{}", media_type="application/json")


def edge(listed: str | None = None) -> Edge:
    """The edge layers of a service on the loopback interface."""
    edge = Edge(served, hosts=Hosts.of(None, "127.0.0.1"), origins=Origins.of(listed), allowed=Allowed(served))
    edge.entry.guard = Guard(Posture.LOOPBACK)
    return edge


async def test_only_an_allowed_host_is_served() -> None:
    """A request for another host does not reach the application."""
    assert (await ask(edge(), "POST", "/retry", [("Host", "localhost:8000")])).status == 200
    with pytest.raises(MisdirectedError):
        await ask(edge(), "POST", "/retry", [("Host", "evil.example")])
    with pytest.raises(MisdirectedError):
        await ask(edge(), "OPTIONS", "*", [("Host", "evil.example")])


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
async def test_a_foreign_page_does_not_reach_the_application(content_type: str) -> None:
    """A request of a foreign page changes nothing, whatever its content type."""
    headers = [("Host", "localhost"), ("Origin", "http://evil.example")]
    with pytest.raises(ForeignOriginError):
        await ask(edge(), "POST", "/retry", [*headers, ("Content-Type", content_type)])
    assert (await ask(edge("http://evil.example"), "POST", "/retry", headers)).status == 200


@pytest.mark.parametrize("origins", [("http://evil.example", "http://localhost"), ("http://localhost", "null")])
async def test_one_of_several_origins_is_not_enough(origins: tuple[str, str]) -> None:
    """A request with two origins, the service's own and another, is refused in either order."""
    headers = [("Host", "localhost"), *(("Origin", origin) for origin in origins)]
    with pytest.raises(ForeignOriginError):
        await ask(edge(), "POST", "/retry", headers)


@pytest.mark.parametrize("listed", [None, "https://console.example"])
def test_both_ways_say_the_same(listed: str | None) -> None:
    """The direct path adds the same headers as FastAPI's path."""
    for etag in (False, True):
        headers = [(b"content-type", b"application/json"), *([(b"etag", b'"1"')] if etag else [])]
        lacking = edge(listed).lacking([(b"host", b"localhost")], headers)
        assert edge(listed).lacking_plain(headers) == b"".join(b"%b: %b\r\n" % header for header in lacking)
