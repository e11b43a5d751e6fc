"""Open-loop load: requests that are due at a constant rate, each timed from the moment when it was due.

A request whose time has come is sent on an idle connection; where all connections wait for answers, it waits too, and
this waiting is part of its latency. So a stall of the service is seen by every request that was due meanwhile, not
only by the ones that were on their way (Gil Tene: coordinated omission).

It runs in a process of its own, without a garbage collector: `python -m benchmarks.arrivals PORT WHAT RATE SECONDS
CONNECTIONS ROWS STAMP` prints one line of JSON. The requests are made before the clock starts.
"""

import gc
import json
import random
import re
import select
import socket
import sys
import time
from collections import deque
from typing import NamedTuple

from benchmarks.load import REQUEST_TIMEOUT
from benchmarks.machine import BenchmarkError, Machine
from benchmarks.rows import Event, Source, entity

DRAIN = 5.0  # seconds that late answers are waited for after the last request was due
LEAD = 0.02  # seconds until the first request is due
LARGEST = 1 << 16  # bytes of an answer's part that is read at once
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Arrivals(NamedTuple):
    """The latencies of all requests, in milliseconds, and what the generator itself added and used."""

    p50: float
    p99: float
    p999: float
    longest: float
    answers: int
    missing: int  # requests without an answer at the end; they count with the time that they had waited
    lag_p99: float  # ms between the moment when a request could be sent and when it was
    microseconds: float  # of the generator's processor time, for each request


def arrive(
    machine: Machine, port: int, what: str, source: Source, *, rate: float, connections: int, seconds: float
) -> Arrivals:
    """Offer `lookup` or `post` requests at a rate a second, from another process."""
    count = round(rate * seconds)
    command = [sys.executable, "-m", "benchmarks.arrivals", str(port), what, f"{rate:.3f}", f"{seconds:.3f}"]
    command += [str(connections), str(source.rows), str(source.stamps(count))]
    return Arrivals(*json.loads(machine.run(command, timeout=seconds + DRAIN + REQUEST_TIMEOUT)))


class _Connection:
    """A connection with at most one request on its way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=REQUEST_TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0  # of the request on its way
        self.free_at = 0.0
        self._received = b""
        self._missing = 0

    def is_answered(self) -> bool:
        """Whether the answer is complete with what has come. Raises BenchmarkError unless its status is 200."""
        data = self.socket.recv(LARGEST)
        if not data:
            raise BenchmarkError("the service closed a connection")
        if self._received:
            data = self._received + data
        end = data.find(b"\r\n\r\n")
        length = LENGTH.search(data, 0, end) if end >= 0 else None
        if end >= 0 and (length is None or data[9:12] != b"200"):
            raise BenchmarkError(f"a request was answered with {data[:300].decode(errors='replace')}")
        if length is None or len(data) < end + 4 + int(length[1]):
            self._received = data
            return False
        self._received = b""
        return True


def _requests(what: str, count: int, source: Source, stamp: int) -> list[bytes]:
    """The requests of requests.lua."""
    host = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if what == "lookup":
        numbers = random.Random(stamp)
        ids = (entity(numbers.randrange(source.rows)) for _ in range(count))
        return [f"GET /v1/entities/{entity_id} {host}\r\n".encode() for entity_id in ids]
    head = f"POST /v1/events {host}Content-Type: application/json\r\nContent-Length: "
    bodies = (Event(source.known(at), at, fresh=False).json() for at in range(stamp, stamp + count))
    return [f"{head}{len(body)}\r\n\r\n{body}".encode() for body in bodies]


def _offer(port: int, requests: list[bytes], rate: float, connections: int) -> Arrivals:
    """Send each request when it is due, and time each answer."""
    poll, idle, by_number = select.epoll(), deque[_Connection](), dict[int, _Connection]()
    for _ in range(connections):
        connection = _Connection(port)
        idle.append(connection)
        by_number[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
    gc.collect()
    gc.disable()
    clock, interval, count = time.perf_counter, 1 / rate, len(requests)
    waits, lags = list[float](), list[float]()
    sent, used = 0, time.process_time()
    began = clock() + LEAD
    end = began + count * interval + DRAIN
    while len(waits) < count and (now := clock()) < end:
        while idle and sent < count and (due := began + sent * interval) <= now:
            connection = idle.popleft()
            connection.due = due
            lags.append(now - max(due, connection.free_at))
            connection.socket.sendall(requests[sent])
            sent += 1
            now = clock()
        pause = (began + sent * interval if idle and sent < count else end) - clock()
        select.select([poll], [], [], max(0.0, pause))  # epoll_wait itself counts in milliseconds
        for number, _ in poll.poll(0):
            connection = by_number[number]
            if connection.is_answered():
                connection.free_at = clock()
                waits.append(connection.free_at - connection.due)
                idle.append(connection)
    used, now = time.process_time() - used, clock()
    answers = len(waits)
    waits += [now - each.due for each in by_number.values() if each not in idle]
    waits += [now - (began + number * interval) for number in range(sent, count)]
    waits.sort()
    lags.sort()

    def quantile(ordered: list[float], share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    return Arrivals(
        quantile(waits, 0.5),
        quantile(waits, 0.99),
        quantile(waits, 0.999),
        waits[-1] * 1000,
        answers,
        count - answers,
        quantile(lags, 0.99),
        used / max(1, answers) * 1_000_000,
    )


def main() -> None:
    """Offer the load that the arguments describe."""
    port, what, rate, seconds, connections, rows, stamp = sys.argv[1:]
    requests = _requests(what, round(float(rate) * float(seconds)), Source(int(rows)), int(stamp))
    print(json.dumps(_offer(int(port), requests, float(rate), int(connections))))


if __name__ == "__main__":
    main()
