"""Lines sent in chunks, through the project's own client, and the outcome of each counted once.

A request holds no more lines than the service takes in as one transaction. So a request that fails with a 503 has
left nothing behind, and is sent again as a whole: every line keeps an answer of its own, and none that was early,
invalid or in conflict is lost. Where a failed request was taken in all the same (its answer got lost, or the service
commits smaller pieces), its lines answer `duplicate` or `stale` the second time, a conflict among them too once later
events of its entity are in. They are counted as they answered last, and the report says how many there are.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
import msgspec

from app.answers import INVALID
from app.domain.registration import Outcome
from app.errors import StartError
from app.load.early import Early, RefusedLines, why
from app.load.source import Line, Source, chunks
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
TRIES = 12  # of one request without progress: they outlast the minute in which a circuit breaker is open
MAX_WAIT = 10.0  # seconds between two of them

OUTCOMES = (*(str(outcome) for outcome in Outcome), INVALID)
NOT_IN = (Outcome.EARLY, Outcome.CONFLICT, INVALID)
TOO_LONG = f"the line is larger than {MAX_LINE:,} bytes"


class Loader:
    """Sends lines to the service at `url`, and counts each once, with its last outcome.

    `show` is called after each answer, with how much of the pass is done (from 0 to 1, or None), `say` with what a
    person should know meanwhile; `wait` waits for some seconds. Raises StartError when `url` is not an address.
    """

    def __init__(
        self,
        url: str,
        *,
        show: "Callable[[Loader, float | None], None]" = lambda _loader, _share: None,
        say: Callable[[str], None] = lambda _message: None,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._url = _checked(url)
        self._show = show
        self._say = say
        self._wait = wait
        self._address = str(self._url.copy_with(username=None, password=None)).rstrip("/")
        self._reached = False
        self.counts: Counter[str] = Counter()
        self.sent = 0  # lines, those that were sent again included
        self.repeated = 0  # lines that a request had taken in before it failed, as far as can be known
        self.on_the_way = 0  # lines of a request without an answer
        self.refused = RefusedLines()

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

        Raises StartError when the input cannot be read, or the service cannot be reached or refuses a request. Must
        not be called where an event loop runs: it runs one of its own, for each request, and reads the input between
        them, so that Ctrl-C interrupts a read.
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
        client = Client(
            str(self._url),
            timeout=httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
            headers={"User-Agent": "pqs load"},
            sleep=self._wait,
        )
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

    async def _take(self, client: Client, chunk: list[Line], early: Early, *, again: bool = False) -> None:
        """Send a chunk, and note what became of its lines."""
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

    async def _send(self, client: Client, lines: list[Line]) -> list[LineResult]:
        """The verdicts on those lines that were not applied; the request is sent again while it fails in passing."""
        self.on_the_way = len(lines)
        with self._understood():
            sent = await client.events.send_lines([line.content or b"" for line in lines], pause=self._pause)
        self._reached = True
        self.on_the_way = 0
        self.repeated += sent.repeated
        return sent.results

    def _pause(self, error: ClientError, failures: int, committed: int) -> float:
        """How many seconds to wait before a request is sent again. Raises StartError when that is no use."""
        if isinstance(error, UnexpectedAnswerError):
            raise error
        if isinstance(error, ProblemError):
            self._reached = True
            trouble = (
                f"{self._address} answered {error.status} {error.title}: {error.detail or 'no details are given'}"
            )
            if not isinstance(error, UnavailableError):
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
            part = f", with {committed:,} of the {self.on_the_way:,} lines on the way in" if committed else ""
            raise StartError(f"{trouble}; gave up after {TRIES} tries{part}")
        wait = min(max(wait, 2.0 ** (failures - 1)), MAX_WAIT)
        self._say(f"{trouble}; sending again in {wait:.0f} s ({failures} of {TRIES - 1})")
        return wait

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (UnexpectedAnswerError, msgspec.MsgspecError):
            raise StartError(f"{self._address} does not answer as this service does; is the address right?") from None


def _checked(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
        # The look-up encodes the name like this, and would fail on an empty label in its own way.
        if address.scheme in {"http", "https"} and address.host.encode("idna"):
            return address
    except (httpx.InvalidURL, UnicodeError):
        pass
    raise StartError(f"{url} is no address of a service; one looks like http://127.0.0.1:8000")
