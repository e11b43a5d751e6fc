"""Rules of the edge over real connections: foreign pages, old clients, half-closed connections, URLs, full scans."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.edge.conftest import exchange
from tests.processes import Service

HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_foreign_page_touches_no_dead_letter(live: Service, method: str) -> None:
    """A page could send a body-less retry without preflight: its origin is refused before the letter is looked up."""
    path = "/v1/dead-letters/1" + ("/retry" if method == "POST" else "")
    foreign = httpx.request(method, f"{live.url}{path}", headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert httpx.request(method, f"{live.url}{path}", headers={"Origin": live.url}).status_code == 404


@pytest.mark.parametrize("path", ["/livez", "/v1/entities/2f4d6b8a-7c53-4c58-8a3c-1f0e2d3c4b5a", "/v1/entities"])
def test_another_name_is_misdirected(live: Service, path: str) -> None:
    """A request by a foreign host name is a 421 on both paths of answering."""
    answer = httpx.get(f"{live.url}{path}", headers={"Host": "evil.example"})
    assert answer.status_code == 421
    assert answer.json()["status"] == 421


@pytest.mark.parametrize("path", [b"/livez", b"/v1/workflows/none", b"/v1/state-counts"])
def test_a_half_closed_connection_is_answered(live: Service, path: bytes) -> None:
    """A client that half-closes after its request still gets its answer, and then the end."""
    got = exchange(live, b"GET %b HTTP/1.1\r\n" % path + HOST + b"\r\n", answers=1, half_close=True)
    assert (len(got.statuses), got.closed) == (1, True)


@pytest.mark.parametrize("path", [b"/livez", b"/v1/workflows/none"])
def test_http_1_0_is_answered_and_closed(live: Service, path: bytes) -> None:
    """A client of HTTP/1.0, which need not send Host, gets its answer, and the connection closes."""
    got = exchange(live, b"GET %b HTTP/1.0\r\n\r\n" % path, answers=1)
    assert (len(got.statuses), got.closed) == (1, True)


def test_raw_bytes_in_a_url_are_a_problem(live: Service) -> None:
    """Raw UTF-8 in a URL, not percent-encoded, is a 400 problem with a correlation id."""
    got = exchange(live, "GET /v1/workflows/ä HTTP/1.1\r\n".encode() + HOST + b"\r\n", answers=1)
    assert got.statuses == [400]
    assert got.heads[0]["content-type"] == "application/problem+json"
    assert got.heads[0]["x-correlation-id"]
    assert got.heads[0]["cache-control"] == "no-store"


def test_walks_leave_the_counts_alone(live: Service) -> None:
    """Of sixteen concurrent lists by node type some may be refused; counts are answered meanwhile."""

    def walk(_number: int) -> httpx.Response:
        return httpx.get(f"{live.url}/v1/entities?node_type=none", timeout=30)

    def count(_number: int) -> int:
        return httpx.get(f"{live.url}/v1/state-counts", timeout=30).status_code

    with ThreadPoolExecutor(24) as pool:
        walks = [pool.submit(walk, number) for number in range(16)]
        counts = [pool.submit(count, number) for number in range(8)]
        assert {each.result() for each in counts} == {200}
        for answer in (each.result() for each in walks):
            assert answer.status_code in {200, 429}
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
