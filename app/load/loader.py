"""Sends lines in chunks, with the project's own client, and counts each line once, with its last outcome.

A request holds at most the lines of one transaction of the service. So a request that fails with a 503 has written
nothing, and is sent again as a whole: every line gets an outcome of its own, and no early, invalid or conflicting
line is lost. A failed request may have been applied nevertheless: its answer got lost, or the service commits smaller
pieces. Then its lines answer `duplicate` or `stale` the second time; so does a conflict, once later events of its
entity are in. Such lines count with their last outcome, and the report tells their number.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
import msgspec

from app.domain.results import Outcome
from app.errors import StartError
from app.load.early import Early, RefusedLines, why
from app.load.source import InputLine, Source, chunks
from app.wire.answers import (
    FORBIDDEN,
    INVALID,
)
from app.wire.events import MAX_LINE
from pqs_client import (
    Client,
    ClientError,
    ConnectionFailedError,
    LineResult,
    ProblemError,
    UnavailableError,
    UnexpectedAnswerError,
)

CONNECT_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 60.0  # seconds without a byte of an answer
TRIES = 12  # attempts of a request without progress: they outlast the minute of an open circuit breaker
LONGEST_PAUSE = 10.0  # seconds between two attempts
LIMITED = 429  # the status that asks a client to slow down

OUTCOMES = (*(str(outcome) for outcome in Outcome), INVALID, FORBIDDEN)
NOT_IN = (Outcome.EARLY, Outcome.CONFLICT, INVALID, FORBIDDEN)
TOO_LONG = f"the line is larger than {MAX_LINE:,} bytes"


class Loader:
    """Sends lines to the service at `url`, and counts each once, with its last outcome.

    `show` is called after each answer with the finished share of the pass (from 0 to 1, or None if unknown), `say`
    with messages for a person; `wait` waits for some seconds. `token_file` holds the
    key to send, in place of PQS_TOKEN. Raises StartError if `url` is not an address.
    """

    def __init__(
        self,
        url: str,
        *,
        show: "Callable[[Loader, float | None], None]" = lambda _loader, _share: None,
        say: Callable[[str], None] = lambda _message: None,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        token_file: str | None = None,
    ) -> None:
        self._token_file = token_file
        self._url = _checked(url)
        self._show = show
        self._say = say
        self._wait = wait
        self._address = str(self._url.copy_with(username=None, password=None)).rstrip("/")
        self._reached = False
        self.counts: Counter[str] = Counter()
        self.sent = 0  # lines, including repeats
        self.repeated = 0  # lines that a failed request may have applied
        self.on_the_way = 0  # lines of a request without an answer
        self.refused = RefusedLines()

    @property
    def received(self) -> int:
        """The number of lines that have an outcome."""
        return self.counts.total()

    @property
    def taken_in(self) -> int:
        """The number of lines that are in, and need not be sent again."""
        return self.received - sum(self.counts[outcome] for outcome in NOT_IN)

    def load(self, source: Source) -> None:
        """Send all lines in order, then the early ones by entity and position, as long as some of them get in.

        Raises StartError if the input cannot be read, or if the service cannot be reached or refuses a request. Call
        this outside an event loop: it runs its own, one call for each request, and reads the input between the calls,
        so that Ctrl-C interrupts a read.
        """
        early = Early()
        with asyncio.Runner() as runner, self._connected(runner) as client:
            try:
                for chunk in chunks(source.lines()):
                    runner.run(self._take(client, chunk, early))
                    self._show(self, source.share())
                stuck = False
                while len(early) and not stuck:
                    before, early = early, Early()
                    try:
                        self._again(runner, client, before, early)
                        stuck = len(early) == len(before)
                    finally:
                        before.close()
                self.refused = RefusedLines(self.refused, early.refused)
            finally:
                early.close()

    @contextmanager
    def _connected(self, runner: asyncio.Runner) -> Iterator[Client]:
        try:
            client = Client(
                str(self._url),
                timeout=httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
                headers={"User-Agent": "pqs load"},
                token_file=self._token_file,
                sleep=self._wait,
            )
        except (ValueError, OSError) as error:
            raise StartError(f"the token cannot be used: {error}") from None
        runner.run(client.__aenter__())
        try:
            yield client
        finally:
            runner.run(client.__aexit__())

    def _again(self, runner: asyncio.Runner, client: Client, before: Early, early: Early) -> None:
        self._say(f"sending {len(before):,} early lines again, by entity and position")
        done = 0
        for chunk in chunks(before.in_order()):
            runner.run(self._take(client, chunk, early, again=True))
            done += len(chunk)
            self._show(self, done / len(before))

    async def _take(self, client: Client, chunk: list[InputLine], early: Early, *, again: bool = False) -> None:
        """Send a chunk, and count the outcomes of its lines."""
        lines = [line for line in chunk if line.content is not None]
        verdicts = await self._send(client, lines) if lines else []
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
                self.refused.add(line.number, why(verdict))
        for line in chunk:
            if line.content is None:
                self.counts[INVALID] += 1
                self.refused.add(line.number, f"{INVALID}: {TOO_LONG}")

    async def _send(self, client: Client, lines: list[InputLine]) -> list[LineResult]:
        """Send lines, again after temporary errors, and return the results of the lines that were not applied."""
        self.on_the_way = len(lines)
        with self._understood():
            sent = await client.events.send_lines([line.content or b"" for line in lines], pause=self._pause)
        self._reached = True
        self.on_the_way = 0
        self.repeated += sent.repeated
        return sent.results

    def _pause(self, error: ClientError, failures: int, committed: int) -> float:
        """The seconds to wait before a request is sent again. Raises StartError if a repeat cannot help."""
        if isinstance(error, UnexpectedAnswerError):
            raise error
        if isinstance(error, ProblemError):
            self._reached = True
            trouble = (
                f"{self._address} answered {error.status} {error.title}: {error.detail or 'no details are given'}"
            )
            if not isinstance(error, UnavailableError) and error.status != LIMITED:
                self.on_the_way = 0
                raise StartError(trouble)
            wait = error.retry_after.total_seconds() if error.retry_after else 0.0
        else:
            cause = error.__cause__ or error
            trouble = f"cannot reach {self._address}: {str(cause).rstrip('.') or type(cause).__name__}"
            if not self._reached and isinstance(error, ConnectionFailedError) and not error.perhaps_done:
                raise StartError(f"{trouble}; is it running? start it with pqs serve")
            wait = 0.0
        if failures == TRIES:
            part = f"; {committed:,} of the {self.on_the_way:,} lines of this request are in" if committed else ""
            raise StartError(f"{trouble}; gave up after {TRIES} tries{part}")
        wait = min(max(wait, 2.0 ** (failures - 1)), LONGEST_PAUSE)
        self._say(f"{trouble}; sending again in {wait:.0f} s ({failures} of {TRIES - 1})")
        return wait

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (UnexpectedAnswerError, msgspec.MsgspecError):
            raise StartError(f"{self._address} does not answer like this service; is the address right?") from None


def _checked(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
        # The name lookup encodes the host like this, and would fail on an empty label with another error.
        if address.scheme in {"http", "https"} and address.host.encode("idna"):
            return address
    except (httpx.InvalidURL, UnicodeError):
        pass
    raise StartError(f"{url} is not the address of a service, such as http://127.0.0.1:8000")
