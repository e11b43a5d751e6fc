"""`pqs load`: the lines of a file or a pipe, sent to the service as events.

A request holds no more lines than the service takes in as one transaction. So one that fails with a 503 has left
nothing behind, and is sent again as a whole: every line keeps an answer of its own, and none that was early, invalid
or in conflict is lost. Where a failed request was taken in all the same (its answer got lost, or the service commits
smaller pieces), its lines answer `duplicate` or `stale` the second time, a conflict among them too once later events
of its entity are in. They are counted as they answered last, and the report says how many there are.
"""

import gzip
import lzma
import math
import os
import stat
import sys
import tempfile
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO

import click
import httpx
import msgspec

from app.api.bodies import NDJSON
from app.domain.positions import Position
from app.domain.registration import Outcome
from app.errors import Fault, PqsError, StartError
from app.inbound.lines import CHUNK_LINES, MAX_LINE

CHUNK_BYTES = 2 * 1024 * 1024  # of lines in one request; the last of them may go beyond
CONNECT_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 60.0  # seconds without a byte of an answer
TRIES = 12  # of one request without progress: they outlast the minute in which a circuit breaker is open
MAX_WAIT = 10.0  # seconds between two of them
SHOWN = 50  # lines that are listed one by one when they are not in
SHOWN_REASON = 300  # characters of each one's reason
REDRAW = 0.1  # seconds between two states of the progress bar
PLAIN_LINE = 1.0  # seconds between two lines of progress, where there is no terminal
BAR = 10  # characters

INTERRUPTED = 130  # the exit status after Ctrl-C: 128 and the number of SIGINT
INVALID = "invalid"
OUTCOMES = (*(str(outcome) for outcome in Outcome), INVALID)
NOT_IN = (Outcome.EARLY, Outcome.CONFLICT, INVALID)
TOO_LONG = f"the line is larger than {MAX_LINE:,} bytes"


class Line(NamedTuple):
    """A line that is not blank: its number in the input, from 1, and its bytes; None when they are too many."""

    number: int
    content: bytes | None


# --- Input ---------------------------------------------------------------------------------------------------------


class _Readable(Protocol):
    def readline(self, size: int, /) -> bytes: ...


class Source:
    """The lines of a file, or with `-` of standard input, unpacked when its name or its first bytes say gzip or xz.

    Raises StartError, naming the file, when it cannot be opened, read or unpacked.
    """

    def __init__(self, name: str) -> None:
        self._name = "standard input" if name == "-" else name
        self._number = 0
        with self._readable():
            self._raw = os.fdopen(0, "rb", closefd=False) if name == "-" else Path(name).open("rb")  # noqa: SIM115 - see close()
            status = os.fstat(self._raw.fileno())
            self._size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            magic = self._raw.peek(6)
        self._lines: _Readable = self._raw
        if name.endswith(".gz") or magic.startswith(b"\x1f\x8b"):
            self._lines = gzip.GzipFile(fileobj=self._raw)
        elif name.endswith(".xz") or magic.startswith(b"\xfd7zXZ"):
            self._lines = lzma.LZMAFile(self._raw)  # noqa: SIM115 - holds nothing open beside _raw

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._raw.close()

    def share(self) -> float | None:
        """How much of the file has been read, from 0 to 1; None when its size is not known."""
        return min(self._raw.tell() / self._size, 1.0) if self._size else None

    def lines(self) -> Iterator[Line]:
        """The lines that are not blank. No more than MAX_LINE bytes of one are held."""
        while content := self._readline():
            self._number += 1
            ended = content.endswith(b"\n")
            if len(content) > MAX_LINE and not ended:
                while not ended and (rest := self._readline()):
                    ended = rest.endswith(b"\n")
                yield Line(self._number, None)
            elif content.strip():
                yield Line(self._number, content if ended else content + b"\n")

    def _readline(self) -> bytes:
        with self._readable():
            return self._lines.readline(MAX_LINE + 1)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            after = f" after line {self._number:,}" if self._number else ""
            raise StartError(f"cannot read {self._name}{after}: {reason}") from None


def chunks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """The lines in order, as many at a time as one request takes."""
    chunk: list[Line] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line.content or b"")
        if len(chunk) == CHUNK_LINES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


# --- What becomes of the lines -------------------------------------------------------------------------------------


class Verdict(msgspec.Struct, frozen=True):
    """A line of the service's answer: what became of the request's line `line`, or, at the end, the summary."""

    line: int = 0
    outcome: str = ""
    reason: str | None = None
    errors: list[Fault] = []
    entity_id: str = ""
    domain: str = ""
    summary: dict[str, int] | None = None

    def why(self) -> str:
        """The reason of an outcome that keeps a line out, in one line."""
        faults = (
            f"{fault.pointer}: {fault.detail}" if fault.pointer != "#" else fault.detail for fault in self.errors
        )
        return f"{self.outcome}: {self.reason or '; '.join(faults)}"


class Refused:
    """Lines that are not in, those of `others` among them: how many, and the first SHOWN with their reasons."""

    def __init__(self, *others: "Refused") -> None:
        self.total: int = sum(other.total for other in others)
        self._first: list[tuple[int, str]] = [line for other in others for line in other._first]  # noqa: SLF001 - its own class

    def add(self, number: int, reason: str) -> None:
        """Note a line. They may come in any order."""
        self.total += 1
        self._first.append((number, reason[:SHOWN_REASON] + "..." * (len(reason) > SHOWN_REASON)))
        if len(self._first) >= 2 * SHOWN:
            self._cut()

    def report(self) -> list[str]:
        """The lines by number, for people; what a terminal would act on is written out."""
        self._cut()
        told = [f"line {number:,}: {reason}" for number, reason in self._first]
        if self.total > len(told):
            told.append(f"and {self.total - len(told):,} more")
        return ["".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in told]

    def _cut(self) -> None:
        self._first.sort()
        del self._first[SHOWN:]


class _Placed(msgspec.Struct):
    position: Position


class Early:
    """Lines to send again. They wait in a temporary file; memory holds four numbers for each."""

    def __init__(self) -> None:
        self.refused = Refused()
        with self._disk():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._end = 0
        self._places: dict[tuple[str, str], array[int]] = {}

    def __len__(self) -> int:
        return self.refused.total

    def add(self, line: Line, verdict: Verdict) -> None:
        """Keep a line that was early. Raises MsgspecError when it has no position."""
        content = line.content or b""
        position = msgspec.json.decode(content, type=_Placed).position
        places = self._places.setdefault((verdict.domain, verdict.entity_id), array("q"))
        places.extend((position.number, line.number, self._end, len(content)))
        with self._disk():
            self._file.write(content)
        self._end += len(content)
        self.refused.add(line.number, verdict.why())

    def in_order(self) -> Iterator[Line]:
        """The lines by domain, entity and position; those that claim one position as they came."""
        with self._disk():
            self._file.flush()
        for key in sorted(self._places):
            flat = self._places[key]
            for _, number, offset, size in sorted(zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)):
                yield Line(number, os.pread(self._file.fileno(), size, offset))

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):  # what is buffered may not fit on the disk, and is not needed any more
            self._file.close()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StartError(f"cannot keep early lines in a temporary file: {error}") from None


# --- Sending -------------------------------------------------------------------------------------------------------


class _Problem(msgspec.Struct):
    """What is read of problem details (RFC 9457)."""

    title: str = ""
    detail: str = ""
    committed_lines: int = 0


class Loader:
    """Sends lines, and counts each once, with its last outcome.

    `show` is called after each answer, with how much of the pass is done (from 0 to 1, or None), `say` with what a
    person should know meanwhile; `wait` waits for some seconds.
    """

    def __init__(
        self,
        client: httpx.Client,
        *,
        show: "Callable[[Loader, float | None], None]" = lambda _loader, _share: None,
        say: Callable[[str], None] = lambda _message: None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._show = show
        self._say = say
        self._wait = wait
        self._address = str(client.base_url.copy_with(username=None, password=None)).rstrip("/")
        self._reached = False
        self.counts: Counter[str] = Counter()
        self.sent = 0  # lines, those that were sent again included
        self.repeated = 0  # lines that a request had taken in before it failed, as far as can be known
        self.on_the_way = 0  # lines of a request without an answer
        self.refused = Refused()

    @property
    def received(self) -> int:
        """How many lines have an outcome."""
        return self.counts.total()

    @property
    def taken_in(self) -> int:
        """How many lines are in: all that need not be sent again."""
        return self.received - sum(self.counts[outcome] for outcome in NOT_IN)

    def load(self, source: Source) -> None:
        """Send all lines in order, then the early ones by entity and position, for as long as that helps some.

        Raises StartError when the input cannot be read, or the service cannot be reached or refuses a request.
        """
        early = Early()
        try:
            for chunk in chunks(source.lines()):
                self._take(chunk, early)
                self._show(self, source.share())
            stuck = False
            while len(early) and not stuck:
                before, early = early, Early()
                try:
                    self._again(before, early)
                    stuck = len(early) == len(before)
                finally:
                    before.close()
            self.refused = Refused(self.refused, early.refused)
        finally:
            early.close()

    def _again(self, before: Early, early: Early) -> None:
        self._say(f"sending {len(before):,} early lines again, by entity and position")
        done = 0
        for chunk in chunks(before.in_order()):
            self._take(chunk, early, again=True)
            done += len(chunk)
            self._show(self, done / len(before))

    def _take(self, chunk: list[Line], early: Early, *, again: bool = False) -> None:
        """Send a chunk, and note what became of its lines."""
        lines = [line for line in chunk if line.content is not None]
        verdicts = self._send(lines) if lines else []
        if again:
            self.counts[Outcome.EARLY] -= len(lines)
        self.counts[Outcome.APPLIED] += len(lines) - len(verdicts)
        self.counts.update(verdict.outcome for verdict in verdicts)
        self.sent += len(chunk)
        for verdict in verdicts:
            line = lines[verdict.line - 1]
            if verdict.outcome == Outcome.EARLY:
                with self._understood():
                    early.add(line, verdict)
            elif verdict.outcome in NOT_IN:
                self.refused.add(line.number, verdict.why())
        for line in chunk:
            if line.content is None:
                self.counts[INVALID] += 1
                self.refused.add(line.number, f"{INVALID}: {TOO_LONG}")

    def _send(self, lines: list[Line]) -> list[Verdict]:
        """The verdicts on those lines that were not applied; the request is sent again while it fails in passing."""
        body = b"".join(line.content or b"" for line in lines)
        self.on_the_way = len(lines)
        committed = failures = 0
        repeat = False
        while True:
            wait = 0.0
            try:
                response = self._client.post("/v1/events", content=body)
            except httpx.RequestError as error:
                trouble = f"cannot reach {self._address}: {str(error).rstrip('.') or type(error).__name__}"
                if not self._reached and isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    raise StartError(f"{trouble}; is it running? start it with pqs serve") from None
            else:
                self._reached = True
                if response.status_code == HTTPStatus.OK:
                    self.on_the_way = 0
                    verdicts = self._verdicts(response, len(lines))
                    known = (Outcome.DUPLICATE, Outcome.STALE)
                    self.repeated += repeat * sum(verdict.outcome in known for verdict in verdicts)
                    return verdicts
                problem = _problem(response)
                trouble = f"{self._address} answered {response.status_code} {problem.title}: {problem.detail}"
                if response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                    self.on_the_way = 0
                    raise StartError(trouble)
                wait = _retry_after(response)
                if problem.committed_lines > committed:
                    committed, failures = problem.committed_lines, 0
            repeat = True
            failures += 1
            if failures == TRIES:
                part = f", with {committed:,} of the {len(lines):,} lines on the way in" if committed else ""
                raise StartError(f"{trouble}; gave up after {TRIES} tries{part}")
            wait = min(max(wait, 2.0 ** (failures - 1)), MAX_WAIT)
            self._say(f"{trouble}; sending again in {wait:.0f} s ({failures} of {TRIES - 1})")
            self._wait(wait)

    def _verdicts(self, response: httpx.Response, sent: int) -> list[Verdict]:
        with self._understood():
            *verdicts, last = _VERDICTS.decode_lines(response.content) or [Verdict()]
            complete = last.summary is not None and last.summary.get("received") == sent
            if complete and all(v.outcome in OUTCOMES and 1 <= v.line <= sent for v in verdicts):
                return verdicts
            raise msgspec.MsgspecError

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StartError(f"{self._address} does not answer as this service does; is the address right?") from None


_VERDICTS = msgspec.json.Decoder(Verdict)


def _problem(response: httpx.Response) -> _Problem:
    try:
        return msgspec.json.decode(response.content, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Problem(response.reason_phrase, "no details are given")


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 0 without one, or with a date, which this service does not send."""
    given = response.headers.get("retry-after", "")
    return float(given) if given.isascii() and given.isdigit() else 0.0


# --- What people see -----------------------------------------------------------------------------------------------


class Progress:
    """How far it is: a bar that is redrawn in place on a terminal, else a line now and then."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._on_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._between = REDRAW if self._on_terminal else PLAIN_LINE
        self._began = clock()
        self._shown_at = -math.inf if self._on_terminal else self._began
        self._drawn = 0

    @property
    def seconds(self) -> float:
        """The time since the beginning."""
        return self._clock() - self._began

    def show(self, loader: Loader, share: float | None) -> None:
        """Show where the loader is, unless that was done just now."""
        now = self._clock()
        if now - self._shown_at < self._between:
            return
        self._shown_at = now
        parts = [] if share is None else [f"{share:4.0%}"]
        if self._on_terminal and share is not None:
            done = round(share * BAR)
            parts.insert(0, f"[{'#' * done}{'-' * (BAR - done)}]")
        parts += [f"{loader.received:,} lines", _rate(loader.sent, self.seconds)]
        parts.append(", ".join(f"{loader.counts[name]:,} {name}" for name in OUTCOMES if loader.counts[name]))
        if self._on_terminal:
            self._draw("  ".join(parts))
        else:
            self._write("  ".join(parts).strip() + "\n")

    def say(self, message: str) -> None:
        """A line that stays."""
        self.end()
        self._write(message + "\n")

    def end(self) -> None:
        """Clear the bar away."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _draw(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            columns = 80
        text = text[: columns - 1]
        self._write("\r" + text.ljust(self._drawn))
        self._drawn = len(text)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _rate(lines: int, seconds: float) -> str:
    return f"{lines / max(seconds, 0.001):,.0f}/s"


def summary(loader: Loader, seconds: float) -> str:
    """The report: how many lines had which outcome, and how fast."""
    outcomes = ", ".join(f"{loader.counts[name]:,} {name}" for name in OUTCOMES)
    took = f"in {seconds:.1f} s ({_rate(loader.received, seconds)})"
    told = f"{loader.received:,} received: {outcomes} {took}"
    if loader.repeated:
        told += f"\n{loader.repeated:,} of the duplicate and stale ones were sent again after a request that failed,"
        told += " which may have taken them in"
    return told


def service_url(host: str, port: int) -> str:
    """The address of a service that listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def load_file(name: str, url: str) -> int:
    """Send the file, or with `-` standard input, to the service at `url`, and return the exit status.

    0: every line is in. 1: some are not; standard error lists them. 130: interrupted. The report is on standard
    output. Raises StartError as `Loader.load` does, after a report on what had been sent.
    """
    progress = Progress(sys.stderr)
    interrupted = False
    with _client(url) as client:
        loader = Loader(client, show=progress.show, say=progress.say)
        try:
            with closing(Source(name)) as source:
                loader.load(source)
        except KeyboardInterrupt:
            interrupted = True
        except PqsError:
            progress.end()
            if loader.received:
                _report(loader, progress.seconds)
            raise
    progress.end()
    _report(loader, progress.seconds)
    if interrupted:
        perhaps = f", and perhaps the {loader.on_the_way:,} that were being sent" if loader.on_the_way else ""
        click.echo(f"pqs: interrupted; {loader.taken_in:,} lines are in{perhaps}", err=True)
        return INTERRUPTED
    return 1 if loader.refused.total else 0


def _client(url: str) -> httpx.Client:
    headers = {"Content-Type": NDJSON, "User-Agent": "pqs load"}
    timeout = httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT)
    try:
        address = httpx.URL(url)
        # The look-up encodes the name like this, and would fail on an empty label in its own way.
        if address.scheme in {"http", "https"} and address.host.encode("idna"):
            return httpx.Client(base_url=address, headers=headers, timeout=timeout)
    except (httpx.InvalidURL, UnicodeError):
        pass
    raise StartError(f"{url} is no address of a service; one looks like http://127.0.0.1:8000")


def _report(loader: Loader, seconds: float) -> None:
    click.echo(summary(loader, seconds))
    if loader.refused.total:
        click.echo(f"{loader.refused.total:,} lines are not in:", err=True)
        for line in loader.refused.report():
            click.echo(f"  {line}", err=True)
