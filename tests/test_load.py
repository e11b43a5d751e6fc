"""`pqs load`: what is read, what is sent, and what is told of it."""

import asyncio
import gzip
import io
import json
import lzma
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import httpx
import pytest
import uvicorn
from click.testing import CliRunner, Result

from app import main
from app.api.context import App, Message, Receive, Scope, Send
from app.cli import pqs
from app.errors import StartError
from app.load import progress, service_url
from app.load import source as sources
from app.load.early import Early, RefusedLines
from app.load.loader import Loader
from app.load.progress import Progress, summary
from app.load.source import InputLine, Source, chunks
from app.settings import Settings
from app.wire.answers import LineResult
from tests import processes
from tests.making import Json, event_json, life, node
from tests.processes import COMMAND, DATA, PATIENCE

# The tests block, and so are not async; the fixtures that make a database are, and run where this one is asked for.
pytestmark = pytest.mark.usefixtures("anyio_backend")


# --- The service, and what may stand in its way ---------------------------------------------------------------------


class Door:
    """An application in front of the service: each request goes to the next of `script`, and after it to the service.

    `bodies` are the lines of each request.
    """

    def __init__(self, service: App, *script: App) -> None:
        self._service = service
        self._script = list(script)
        self.bodies: list[list[bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan" or scope["method"] == "GET":
            await self._service(scope, receive, send)
            return
        body = await read(receive)
        self.bodies.append(body.splitlines())
        handler = self._script.pop(0) if self._script else self._service
        await handler(scope, receiving(body), send)


async def read(receive: Receive) -> bytes:
    """A whole body."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def receiving(body: bytes) -> Receive:
    """A client that sends this, and then waits."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return receive


def answering(status: int, body: bytes, **headers: str) -> App:
    """An application that always answers this."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await read(receive)
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})

    return app


def unavailable(committed_lines: int = 0, *, retry_after: int = 1) -> App:
    """The service's 503."""
    problem = {
        "title": "Service Unavailable",
        "detail": "the database does not answer",
        "committed_lines": committed_lines,
    }
    return answering(503, json.dumps(problem).encode(), retry_after=str(retry_after))


def silently(service: App, lines: int | None = None) -> App:
    """The service takes in the first lines of a request, all by default; its answer breaks off on the way."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await taking_in(service, scope, receive, lines)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})

    return app


def partly(service: App, lines: int) -> App:
    """The service takes in the first lines of a request, and says so in a 503."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await taking_in(service, scope, receive, lines)
        await unavailable(lines)(scope, receiving(b""), send)

    return app


async def taking_in(service: App, scope: Scope, receive: Receive, lines: int | None) -> None:
    """Hand the first lines of a request to the service, and forget the answer."""

    async def forget(_message: Message) -> None:
        pass

    body = await read(receive)
    await service(scope, receiving(b"\n".join(body.splitlines()[:lines])), forget)


@contextmanager
def serving(app: App) -> Iterator[str]:
    """The address of an application that a thread serves."""
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def service(settings: Settings) -> App:
    """The application, not yet served."""
    return main.create_app(settings)


# --- The command ----------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    """`pqs load` in this process, without the lines of progress that there are on a slow machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "PLAIN_LINE", 3600.0)
        return CliRunner().invoke(pqs, ["load", *map(str, arguments)])


@contextmanager
def loading(url: str, **options: Callable[[float], None]) -> Iterator[Loader]:
    """A loader of its own, that does not wait unless told."""
    note: Callable[[float], None] = options.get("wait", lambda _seconds: None)

    async def wait(seconds: float) -> None:
        note(seconds)

    yield Loader(url, wait=wait)


def written(path: Path, lines: list[bytes]) -> Path:
    """A file of these lines; the name says how it is packed."""
    content = b"\n".join(lines) + b"\n"
    match path.suffix:
        case ".gz":
            content = gzip.compress(content)
        case ".xz":
            content = lzma.compress(content)
        case _:
            pass
    path.write_bytes(content)
    return path


def encoded(events: list[Json]) -> list[bytes]:
    """Events as lines."""
    return [json.dumps(event).encode() for event in events]


def chain(number: int, domain: str = "registration") -> list[Json]:
    """The events of a registration that goes well, each but the first with the one before it."""
    events = life(node(number), domain=domain)
    for event in events[1:]:
        event["position"]["previous"] = event["position"]["sequence"] - 1
    return events


def counted(text: str) -> dict[str, int]:
    """The numbers of the report."""
    line = next(line for line in text.splitlines() if " received: " in line)
    received, _, rest = line.partition(" received: ")
    numbers = {"received": int(received.replace(",", ""))}
    for part in rest.partition(" in ")[0].split(", "):
        number, name = part.split(" ")
        numbers[name] = int(number.replace(",", ""))
    return {name: number for name, number in numbers.items() if number}


def rows(url: str, domain: str = "registration") -> list[Json]:
    """All registrations of a domain."""
    answer = httpx.get(f"{url}/v1/entities", params={"domain": domain, "limit": 1000})
    items: list[Json] = answer.json()["items"]
    return items


# --- Lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b"a\nb\n", [(1, b"a\n"), (2, b"b\n")]),
        (b"a\n\n  \nb", [(1, b"a\n"), (4, b"b\n")]),
        (b"a\r\nb\r\n", [(1, b"a\r\n"), (2, b"b\r\n")]),
        (b"\xff\x00\nb\n", [(1, b"\xff\x00\n"), (2, b"b\n")]),
        (b"12345678\nb\n", [(1, b"12345678\n"), (2, b"b\n")]),
        (b"12345678", [(1, b"12345678\n")]),
        (b"123456789\nb\n", [(1, None), (2, b"b\n")]),
        (b"1" * 40 + b"\nb\n", [(1, None), (2, b"b\n")]),
        (b"a\n" + b"1" * 40, [(1, b"a\n"), (2, None)]),
    ],
)
def test_lines_keep_their_numbers(
    content: bytes, lines: list[tuple[int, bytes | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank lines are skipped and counted, a last line needs no end, and one over the limit has no content."""
    monkeypatch.setattr(sources, "MAX_LINE", 8)
    file = tmp_path / "events"
    file.write_bytes(content)
    with closing(Source(str(file))) as source:
        assert [tuple(line) for line in source.lines()] == lines


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("events.ndjson.gz", gzip.compress),
        ("events.ndjson.xz", lzma.compress),
        ("no-name-for-gzip", gzip.compress),
        ("no-name-for-xz", lzma.compress),
    ],
)
def test_packed_files_are_unpacked(name: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """gzip and xz are known by the file's name and by its first bytes, and the whole of the file is read."""
    lines = [b"%d\n" % number for number in range(5000)]
    (tmp_path / name).write_bytes(pack(b"".join(lines)))
    with closing(Source(str(tmp_path / name))) as source:
        assert [line.content for line in source.lines()] == lines
        assert source.share() == 1


def damaged(packed: bytes) -> bytes:
    """The same with other bytes in the middle."""
    half = len(packed) // 2
    return packed[:half] + bytes(byte ^ 0x55 for byte in packed[half : half + 40]) + packed[half + 40 :]


NOISE = random.Random(1).randbytes(50_000).hex().encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing", None, "No such file or directory"),
        ("folder/", None, "Is a directory"),
        ("plain.gz", b'{"a": 1}\n', "Not a gzipped file"),
        ("plain.xz", b'{"a": 1}\n', "Input format not supported"),
        ("short.gz", gzip.compress(NOISE)[:-20_000], "ended before the end-of-stream marker"),
        ("short.xz", lzma.compress(NOISE)[:-20_000], "ended before the end-of-stream marker"),
        ("damaged.gz", damaged(gzip.compress(NOISE)), "CRC check failed"),
        ("damaged.xz", damaged(lzma.compress(NOISE)), "Corrupt input data"),
    ],
)
def test_unreadable_file_is_named(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    """A file that cannot be opened or unpacked ends the load with status 1 and one line that names it."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name.endswith("/"):
        path.mkdir()
    result = run(path, "--port", "1")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"pqs: cannot read {path}")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([10] * 3, [3]),
        ([10] * 4, [4]),
        ([10] * 9, [4, 4, 1]),
        ([60, 60, 60], [2, 1]),
        ([500, 1], [1, 1]),
        ([None] * 5, [4, 1]),
    ],
)
def test_requests_are_bounded(sizes: list[int | None], expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request ends at its number of lines or of bytes, and every line is in one, in order."""
    monkeypatch.setattr(sources, "CHUNK_LINES", 4)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 100)
    lines = [InputLine(number, None if size is None else b"x" * size) for number, size in enumerate(sizes)]
    requests = list(chunks(lines))
    assert [len(request) for request in requests] == expected
    assert [line for request in requests for line in request] == lines


@pytest.mark.parametrize("seed", range(3))
def test_early_lines_wait_in_order(seed: int) -> None:
    """Early lines come back by domain, entity and position, whole, with their numbers in the input."""
    places = [
        (domain, node(number), position)
        for domain in ("a", "b")
        for number in range(3)
        for position in (1, 2, 10, 2**63 - 1)
    ]
    sent = list(enumerate(places, start=1))
    random.Random(seed).shuffle(sent)
    early = Early()
    with closing(early):
        for number, (domain, entity, position) in sent:
            place = {"partition": "p", "offset": position} if domain == "a" else {"sequence": position}
            content = json.dumps({"n": number, "position": place}).encode() + b"\n"
            early.add(
                InputLine(number, content), LineResult(line=1, outcome="early", domain=domain, entity_id=entity)
            )
        came = list(early.in_order())
        assert len(early) == len(places)
    numbers = {place: number for number, place in sent}
    assert [line.number for line in came] == [numbers[place] for place in sorted(places)]
    assert [json.loads(line.content or b"")["n"] for line in came] == [line.number for line in came]


def test_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the temporary file cannot take the early lines, the load ends with a message."""
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(Path("/dev/full").open, "wb"))
    with closing(Early()) as early:
        early.add(
            InputLine(1, b'{"position": {"sequence": 2}}\n'),
            LineResult(line=1, outcome="early", domain="a", entity_id=node(1)),
        )
        with pytest.raises(StartError, match="No space left on device"):
            list(early.in_order())


# --- Words ----------------------------------------------------------------------------------------------------------


def test_long_lists_are_cut() -> None:
    """Of many lines the first are listed, by number and in whatever order they came, and the rest is counted."""
    numbers = list(range(1, 1001))
    random.Random(1).shuffle(numbers)
    halves = RefusedLines(), RefusedLines()
    for number in numbers:
        halves[number % 2].add(number, "invalid: " + "long " * 100)
    report = RefusedLines(*halves).report()
    assert [line.partition(":")[0] for line in report[:-1]] == [f"line {number}" for number in range(1, 51)]
    assert report[-1] == "and 950 more"
    assert max(map(len, report)) < 350


def test_listed_reasons_do_not_act_on_the_terminal() -> None:
    """Control characters of an event's own words are written out."""
    refused = RefusedLines()
    refused.add(1, "conflict: partition \x1b[31m\n\x07")
    assert refused.report() == [r"line 1: conflict: partition \x1b[31m\n\x07"]


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 8000, "http://127.0.0.1:8000"),
        ("::1", 1, "http://[::1]:1"),
        ("node.example", 80, "http://node.example:80"),
    ],
)
def test_address_of_the_service(host: str, port: int, url: str) -> None:
    """The service's address is made of host and port, an IPv6 address in brackets."""
    assert service_url(host, port) == url


def test_address_of_a_service_with_a_certificate() -> None:
    """Where the service speaks TLS, its address begins with https."""
    assert service_url("127.0.0.1", 8000, tls=True) == "https://127.0.0.1:8000"
    assert service_url("::1", 1, tls=True) == "https://[::1]:1"


def test_report_counts_every_outcome() -> None:
    """The report has the sum, every outcome, the time and the rate."""
    with loading("http://localhost") as loader:
        loader.counts.update({"applied": 158_000, "early": 500, "invalid": 49})
        assert summary(loader, 10.2) == (
            "158,549 received: 158,000 applied, 0 ignored, 0 duplicate, 0 stale, 500 early, 0 conflict, 49 invalid,"
            " 0 forbidden in 10.2 s (15,544/s)"
        )
        assert loader.taken_in == 158_000


class Terminal(io.StringIO):
    """Text that is for a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """It has no size that could be asked for."""
        raise OSError


def shown(stream: io.StringIO, share: float | None) -> str:
    """What is shown of 12 seconds, in which eight chunks a second are answered."""
    now = 0.0
    progress = Progress(stream, lambda: now)
    with loading("http://localhost") as loader:
        for step in range(100):
            now = step / 8  # exact in binary
            loader.counts["applied"] += 1000
            loader.sent += 1000
            progress.show(loader, None if share is None else share * step / 100)
    progress.end()
    return stream.getvalue()


@pytest.mark.parametrize(
    ("share", "last"),
    [
        (1.0, "96%  97,000 lines  8,083/s  97,000 applied"),
        (None, "97,000 lines  8,083/s  97,000 applied"),
    ],
)
def test_plain_progress_is_a_line_a_second(share: float | None, last: str) -> None:
    """Without a terminal there is one line a second at most, and no carriage return."""
    text = shown(io.StringIO(), share)
    assert "\r" not in text
    assert len(text.splitlines()) == 12
    assert text.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("share", "state"),
    [
        (1.0, "[#####-----]   50%  51,000 lines  8,160/s  51,000 applied"),
        (None, "51,000 lines  8,160/s  51,000 applied"),
    ],
)
def test_terminal_progress_is_drawn_in_place(
    share: float | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal one line is drawn over and over, no wider than the terminal, and cleared at the end."""
    monkeypatch.setenv("TERM", "xterm")
    text = shown(Terminal(), share)
    assert "\n" not in text
    states = text.split("\r")
    assert state in states
    assert max(map(len, states)) < 80
    assert text.endswith("\r")
    assert not states[-2].strip()


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that says it is dumb gets lines."""
    monkeypatch.setenv("TERM", "dumb")
    assert "\r" not in shown(Terminal(), 1.0)


# --- With a service -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.ndjson", "events.ndjson.gz", "events.ndjson.xz"])
def test_load_and_load_again(name: str, service: App, tmp_path: Path) -> None:
    """Events in order are all applied; loaded again, none is, and the status is 0 both times."""
    file = written(tmp_path / name, encoded([event for number in range(300) for event in chain(number)]))
    door = Door(service)
    with serving(door) as url:
        first, second = run(file, "--url", url), run(file, "--url", url + "/")
        assert len(rows(url)) == 300
    assert (first.exit_code, counted(first.stdout)) == (0, {"received": 1500, "applied": 1500})
    assert (second.exit_code, counted(second.stdout)) == (0, {"received": 1500, "stale": 1200, "duplicate": 300})
    assert [len(body) for body in door.bodies] == [1000, 500] * 2
    assert first.stderr == ""


def test_shuffled_lines_need_one_more_pass(service: App, tmp_path: Path) -> None:
    """Shuffled events are sent again once, sorted, and each counts with its last outcome."""
    events = [event for domain in ("a", "b") for number in range(20) for event in chain(number, domain=domain)]
    lines = encoded(events)
    random.Random(7).shuffle(lines)
    door = Door(service)
    with serving(door) as url:
        result = run(written(tmp_path / "events", lines), "--url", url)
        states = {row["current_state"] for domain in ("a", "b") for row in rows(url, domain)}
    assert (result.exit_code, counted(result.stdout)) == (0, {"received": 200, "applied": 200})
    assert states == {"active"}
    first, again = door.bodies
    assert first == lines
    places = [
        (event["domain"], event["entity_id"], event["position"]["sequence"]) for event in map(json.loads, again)
    ]
    assert places == sorted(places)
    assert result.stderr == f"sending {len(again)} early lines again, by entity and position\n"


def test_lines_that_stay_early_are_listed(service: App, tmp_path: Path) -> None:
    """Passes go on while one helps; what is early after the last is listed, and the status is 1."""
    whole, torn = chain(1), chain(2)
    lines = encoded([*reversed(whole), *torn[2:], torn[0]])
    door = Door(service)
    with serving(door) as url:
        result = run(written(tmp_path / "events", lines), "--url", url)
    assert (result.exit_code, counted(result.stdout)) == (1, {"received": 9, "applied": 6, "early": 3})
    assert [len(body) for body in door.bodies] == [9, 7, 3]
    listed = result.stderr.partition("3 lines are not in:\n")[2].splitlines()
    assert [line.partition(": the event")[0] for line in listed] == [
        f"  line {number}: early" for number in (6, 7, 8)
    ]


def test_invalid_and_conflicting_lines_are_listed(
    service: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that can't be taken in are listed by their number in the input, in whatever request they were."""
    monkeypatch.setattr(sources, "CHUNK_LINES", 3)
    begins = event_json("registration.initiated", 1)
    other = event_json("registration.initiated", 1, event_id=str(node(9)))
    lines = [
        b"",
        *encoded([begins]),
        b'{"type": "registration.initiated"',
        b"  ",
        *encoded([other, event_json("node.danced", 2)]),
        b"\xff\xfe",
        b'"' + b"x" * 1024 * 1024 + b'"',
        *encoded([event_json("registration.accepted", 2)]),
    ]
    with serving(service) as url:
        result = run(written(tmp_path / "events", lines), "--url", url)
    assert (result.exit_code, counted(result.stdout)) == (
        1,
        {"received": 7, "applied": 2, "conflict": 1, "invalid": 4},
    )
    head, *listed = result.stderr.splitlines()
    assert head == "5 lines are not in:"
    assert [line.strip()[:33] for line in listed] == [
        "line 3: invalid: not JSON: Expect",
        "line 5: conflict: two events clai",
        "line 6: invalid: #/type: unknown ",
        "line 7: invalid: not UTF-8: byte ",
        "line 8: invalid: the line is larg",
    ]


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_file_is_no_mistake(content: bytes, tmp_path: Path) -> None:
    """A file without events reports none received, with status 0."""
    file = tmp_path / "events"
    file.write_bytes(content)
    result = run(file, "--port", "1")
    assert (result.exit_code, counted(result.stdout), result.stderr) == (0, {}, "")


def test_torn_file_reports_what_was_sent(service: App, tmp_path: Path) -> None:
    """When the input breaks off, what was sent before is reported, and the message names the line."""
    lines = encoded([event for number in range(1200) for event in chain(number)])
    packed = gzip.compress(b"\n".join(lines))
    file = tmp_path / "events.gz"
    file.write_bytes(packed[: len(packed) // 2])
    with serving(service) as url:
        result = run(file, "--url", url)
    assert result.exit_code == 1
    assert 1000 <= counted(result.stdout)["applied"] < 4000
    assert result.stderr.startswith(f"pqs: cannot read {file} after line ")


# --- When the service fails -----------------------------------------------------------------------------------------


def events_file(tmp_path: Path, count: int = 4) -> Path:
    """A file of this many events, each the first of its entity."""
    events = [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(count)]
    return written(tmp_path / "events", encoded(events))


def test_service_that_is_down_is_named(tmp_path: Path) -> None:
    """Nobody listens: the message has the address and what to do, at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = run(events_file(tmp_path), "--port", str(port))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"pqs: cannot reach http://127.0.0.1:{port}: ")
    assert result.stderr.endswith("; is it running? start it with pqs serve\n")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://[::1", "http://a..b"]
)
def test_bad_address_is_refused(url: str, tmp_path: Path) -> None:
    """An address that is not a URL, and a service that is down, get different messages."""
    result = run(events_file(tmp_path), "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"pqs: {url} is not the address of a service")


def test_password_in_the_address_is_not_printed(tmp_path: Path) -> None:
    """Messages name the service without the password that --url may hold."""
    with serving(answering(403, b"")) as url:
        result = run(events_file(tmp_path), "--url", url.replace("//", "//user:secret@"))
    assert f"{url} answered 403 Forbidden" in result.stderr
    assert "secret" not in result.output


def test_refused_request_is_explained(service: App, tmp_path: Path) -> None:
    """A status that waiting does not help ends the load with the problem's title and detail."""
    with serving(service) as url:
        result = run(events_file(tmp_path), "--url", f"{url}/elsewhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"pqs: {url}/elsewhere answered 404 Not Found:"
        " there is nothing at /elsewhere/v1/events; /docs lists all calls\n"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"\xff",
        b'{"summary": {"received": 3}}',
        b'{"line": 1, "outcome": "\xff"}\n{"summary": {"received": 4}}',
        b'{"line": 5, "outcome": "early"}\n{"summary": {"received": 4}}',
        b'{"line": 1, "outcome": "lost"}\n{"summary": {"received": 4}}',
    ],
)
def test_other_servers_are_not_believed(body: bytes, tmp_path: Path) -> None:
    """A 200 that does not account for every line sent is no answer of this service."""
    with serving(answering(200, body)) as url:
        result = run(events_file(tmp_path), "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"pqs: {url} does not answer like this service; is the address right?\n"


def test_503_is_waited_for(service: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was refused in passing is sent again after Retry-After, and every count is right."""
    monkeypatch.setattr(sources, "CHUNK_LINES", 2)
    waits: list[float] = []
    door = Door(service, service, unavailable(retry_after=3), unavailable(retry_after=3600))
    with serving(door) as url, loading(url, wait=waits.append) as loader:
        with closing(Source(str(events_file(tmp_path)))) as source:
            loader.load(source)
        assert len(rows(url)) == 4
    assert +loader.counts == {"applied": 4}
    assert waits == [3, 10]
    assert loader.repeated == 0
    assert [door.bodies.index(body) for body in door.bodies] == [0, 1, 1, 1]


def test_lost_answer_is_told(service: App, tmp_path: Path) -> None:
    """A request whose answer breaks off is sent again; lines that were in already count as such, and that is said."""
    lines = encoded([*chain(1)[:2], event_json("registration.initiated", 1, entity_id=node(2))])
    door = Door(service, silently(service))
    file = written(tmp_path / "events", lines)
    with serving(door) as url, loading(url) as loader, closing(Source(str(file))) as source:
        loader.load(source)
    assert +loader.counts == {"stale": 1, "duplicate": 2}
    assert loader.refused.total == 0
    assert "\n3 of the duplicate and stale lines were sent again" in summary(loader, 1)


def test_partly_committed_request_loses_no_line(service: App, tmp_path: Path) -> None:
    """Early and invalid lines in the part of a failed request that was committed are still taken care of."""
    one, two = chain(1), chain(2)
    lines = [*encoded([one[1]]), b"not JSON", *encoded([two[0], two[1], one[0]])]
    door = Door(service, partly(service, 3))
    with serving(door) as url, loading(url) as loader:
        with closing(Source(str(written(tmp_path / "events", lines)))) as source:
            loader.load(source)
        states = [row["current_state"] for row in rows(url)]
    assert +loader.counts == {"applied": 3, "duplicate": 1, "invalid": 1}
    assert loader.repeated == 1
    assert loader.refused.report()[0].startswith("line 2: invalid: ")
    assert states == ["accepted", "accepted"]


def test_lasting_503_is_given_up(tmp_path: Path) -> None:
    """After TRIES attempts without progress the load ends. It has waited longer than a breaker stays open."""
    waits: list[float] = []
    door = Door(unavailable(1), *[unavailable()] * 3, *[unavailable(1)] * 2)
    with (
        serving(door) as url,
        loading(url, wait=waits.append) as loader,
        closing(Source(str(events_file(tmp_path)))) as source,
        pytest.raises(StartError) as raised,
    ):
        loader.load(source)
    assert str(raised.value) == (
        f"{url} answered 503 Service Unavailable: the database does not answer; gave up after 12 tries;"
        " 1 of the 4 lines of this request are in"
    )
    assert waits[:3] == waits[3:6] == [1, 2, 4], "committed lines are progress, and begin the tries anew"
    assert waits[6:] == [8] + [10] * 7
    assert sum(waits[3:]) > 60
    assert loader.received == 0


# --- As a process ---------------------------------------------------------------------------------------------------


def test_packed_pipe_is_loaded(service: App) -> None:
    """`-` reads a packed pipe; progress and report have no carriage returns."""
    lines = b"\n".join(encoded([event for number in range(250) for event in chain(number)]))
    with serving(service) as url:
        done = subprocess.run(
            [*COMMAND, "load", "-", "--url", url],
            check=False,
            input=gzip.compress(lines),
            capture_output=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    assert counted(done.stdout.decode()) == {"received": 1250, "applied": 1250}
    assert b"\r" not in done.stdout + done.stderr


def test_pipe_is_loaded_into_the_service_of_the_environment(database_url: str, tmp_path: Path) -> None:
    """`-` reads a pipe, and PQS_HOST and PQS_PORT say where `pqs serve` listens."""
    with processes.serving(tmp_path, database_url=database_url) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        done = subprocess.run(
            [*COMMAND, "load", "-"],
            check=False,
            env=processes.environment(host=host, port=port),
            input=b"\n".join(encoded(chain(1))),
            capture_output=True,
            timeout=PATIENCE,
        )
        states = [row["current_state"] for row in rows(served.url)]
    assert done.returncode == 0, done.stderr
    assert counted(done.stdout.decode()) == {"received": 5, "applied": 5}
    assert states == ["active"]


def test_terminal_shows_a_bar(service: App, tmp_path: Path) -> None:
    """On a terminal there is a bar with share, rate and outcomes while the report stays clean."""
    ours, theirs = pty.openpty()
    with serving(service) as url, os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [*COMMAND, "load", events_file(tmp_path, 2500), "--url", url],
            env=os.environ | {"TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        report, _ = process.communicate(timeout=PATIENCE)
        drawn = b""
        try:
            while piece := screen.read(4096):
                drawn += piece
        except OSError:
            pass  # Linux says EIO at the end of what a terminal held
    assert counted(report.decode()) == {"received": 2500, "applied": 2500}
    assert b"\r[####------]   40%  1,000 lines  " in drawn
    assert b"/s  1,000 applied" in drawn
    assert b"\r" not in report


def test_interrupted_load_says_how_far_it_came(service: App, tmp_path: Path) -> None:
    """Ctrl-C ends with status 130, the report, and how many lines are in."""
    reached, ended = threading.Event(), threading.Event()

    async def hang(_scope: Scope, _receive: Receive, _send: Send) -> None:
        reached.set()
        await asyncio.to_thread(ended.wait, PATIENCE)

    with serving(Door(service, service, hang)) as url:
        process = subprocess.Popen(
            [*COMMAND, "load", events_file(tmp_path, 1500), "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert reached.wait(PATIENCE)
            process.send_signal(signal.SIGINT)
            report, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            ended.set()
    assert process.returncode == 130
    assert counted(report) == {"received": 1000, "applied": 1000}
    assert said.endswith("pqs: interrupted; 1,000 lines are in, and perhaps 500 more that were being sent\n")


@pytest.mark.skipif(not DATA.is_dir(), reason="the failure record of Los Alamos is not here")
def test_real_failures_load_once(service: App, tmp_path: Path) -> None:
    """The first years of real node failures are applied in order, all of them; loaded again, none is."""
    with subprocess.Popen([sys.executable, DATA / "lanl_events.py"], stdout=subprocess.PIPE) as converter:
        assert converter.stdout is not None
        lines = list(islice(converter.stdout, 3000))
        converter.kill()
    file = tmp_path / "lanl.ndjson"
    file.write_bytes(b"".join(lines))
    with serving(service) as url:
        first, second = run(file, "--url", url), run(file, "--url", url)
    entities = {json.loads(line)["entity_id"] for line in lines}
    assert (first.exit_code, counted(first.stdout)) == (0, {"received": 3000, "applied": 3000})
    assert (second.exit_code, counted(second.stdout)) == (
        0,
        {"received": 3000, "duplicate": len(entities), "stale": 3000 - len(entities)},
    )
