"""Open load: a stall counts for every request that was due while it lasted."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.arrivals import Arrivals

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
RATE, SECONDS = 200, 1.0
STALL = 0.8  # seconds


@contextmanager
def serving(*, stall: float = 0.0, answer: bytes = ANSWER) -> Iterator[int]:
    """The port of a server that answers at once, but for one stall after the tenth request."""
    seen = 0

    def serve(client: socket.socket) -> None:
        nonlocal seen
        with client:
            while client.recv(1 << 16):
                with lock:
                    seen += 1
                    if seen == 10:
                        time.sleep(stall)  # nobody is answered meanwhile
                client.sendall(answer)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    lock = threading.Lock()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


def offer(port: int, what: str = "lookup") -> "subprocess.CompletedProcess[str]":
    """Offer RATE requests a second on four connections."""
    arguments = [str(port), what, str(RATE), str(SECONDS), "4", "20000", "1700000000000000"]
    command = [sys.executable, "-m", "benchmarks.arrivals", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("what", ["lookup", "post"])
def test_every_request_is_answered_and_timed(what: str) -> None:
    with serving() as port:
        seen = Arrivals(*json.loads(offer(port, what).stdout))
    assert (seen.answers, seen.missing) == (RATE * SECONDS, 0)
    assert 0 < seen.p50 <= seen.p99 <= seen.p999 <= seen.longest


def test_a_stall_counts_for_all_requests_that_were_due_meanwhile() -> None:
    with serving(stall=STALL) as port:
        seen = Arrivals(*json.loads(offer(port).stdout))
    # 160 of 200 requests were due in these 800 ms, though only four were on their way: the median waits for 300 ms.
    # Under a closed load four requests would have waited, and the median would not have moved.
    assert seen.longest >= STALL * 1000 * 0.95
    assert seen.p50 >= STALL * 1000 * 0.2
    assert seen.answers == RATE * SECONDS


def test_an_answer_that_is_no_success_fails_the_load() -> None:
    with serving(answer=b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as port:
        done = offer(port)
    assert done.returncode != 0
    assert "503" in done.stderr
