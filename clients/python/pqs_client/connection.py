"""Sends calls, repeats them if that is safe, and reads their answers."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
import msgspec
from msgspec import Struct

from pqs_client.problems import (
    ClientError,
    ConnectionFailedError,
    ProblemError,
    TimedOutError,
    UnexpectedAnswerError,
    problem_of,
)

JSON = "application/json"
NDJSON = "application/x-ndjson"
KEEP_IDLE = 15.0  # seconds that an idle connection is kept: less than in the service, so that none is cut in use

# Statuses of temporary errors, from the service or from a proxy in front of it.
PASSING_STATUSES = frozenset({429, 502, 503, 504})
LATE = "urn:pqs:problem:late"  # the service's own 504: it has waited as long as it was to
RATE_LIMITED = "urn:pqs:problem:rate-limited"  # the service's own 429: nothing was done
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)

T = TypeVar("T")
Parameters = Mapping[str, object]


class Retry(Struct, frozen=True, kw_only=True):
    """The attempts of a call, and the waits between them; times are in seconds.

    The wait after the n-th failure is drawn evenly from 0 to `base` * 2^(n-1), at most `cap` ("full jitter": M.
    Brooker, Exponential Backoff And Jitter, 2015), so that clients that failed together do not retry together. The
    seconds of the service's `Retry-After` are added.
    """

    attempts: int = 5  # of one call, the first included
    base: float = 0.1
    cap: float = 5.0
    total: float = 30.0  # for all attempts and waits of one call

    def longest_wait(self, failures: int) -> float:
        """The upper bound of the wait after this many failures in a row."""
        return min(self.cap, self.base * 2.0 ** min(failures - 1, 60))


class Caller:
    """Makes calls. Each returns an answer or raises a ClientError.

    A call is sent again only if that is safe: if it was never sent (there was no connection), or if it is
    `repeatable` and met a temporary error (a broken connection, a timeout, or one of PASSING_STATUSES).
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        retry: Retry,
        *,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_body: Callable[[bytes], None] | None = None,
    ) -> None:
        """`jitter` draws from 0 to 1, and `sleep` waits for some seconds; `on_body` is the client's."""
        self.retry = retry
        self._on_body = on_body
        self.jitter = jitter
        self.sleep = sleep
        self._http = http
        self._address = str(http.base_url.copy_with(username=None, password=None)).rstrip("/")

    async def get(
        self, path: str, answer: type[T], params: Parameters | None = None, *, retry: Retry | None = None
    ) -> T:
        """Read the answer to a GET of `path`."""
        return read(await self.call("GET", path, params=params, retry=retry), answer)

    async def call(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        params: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        retry: Retry | None = None,
        silence: float = 0,
    ) -> httpx.Response:
        """The answer with its whole body. All attempts together take at most `retry.total` seconds.

        The service may be silent for `silence` seconds more, and so much longer the call may take.
        """
        retry = retry or self.retry
        if silence:
            retry = msgspec.structs.replace(retry, total=retry.total + silence)
        sent = False

        async def once() -> httpx.Response:
            nonlocal sent
            sent = True
            return await self._send(self._request(method, path, params, headers, content, silence), stream=False)

        try:
            async with asyncio.timeout(retry.total) as limit:
                response = await self._repeat(once, repeatable=repeatable, retry=retry, whole=True)
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"{method} {self._address}{path}: no answer within {retry.total:g} s"
            raise TimedOutError(message, perhaps_done=sent) from None
        if self._on_body is not None:
            self._on_body(response.content)
        return response

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        params: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        retry: Retry | None = None,
        silence: float = 0,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer as they arrive. Repeats end when it begins; the total time is not bounded.

        The service may be silent for `silence` seconds more than usual.
        """

        async def once() -> httpx.Response:
            return await self._send(self._request(method, path, params, headers, content, silence), stream=True)

        whole = content is None or isinstance(content, bytes)
        response = await self._repeat(once, repeatable=repeatable, retry=retry or self.retry, whole=whole)
        try:
            yield self._lines(response)
        finally:
            await response.aclose()

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body's lines. `aiter_lines` would also break at characters that JSON may hold, such as U+2028."""
        held = b""
        try:
            async for chunk in response.aiter_bytes():
                *whole, held = (held + chunk).split(b"\n")
                for line in whole:
                    yield self._told(line)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise self._failed(response.request, error) from error
        if held:
            yield self._told(held)

    def _told(self, line: bytes) -> bytes:
        if self._on_body is not None:
            self._on_body(line)
        return line

    def wait(self, failure: ClientError, failures: int, retry: Retry) -> float:
        """The seconds to wait after this many failures in a row; `failure` is the last one."""
        wait = self.jitter() * retry.longest_wait(failures)
        if isinstance(failure, ProblemError) and failure.retry_after is not None:
            wait += failure.retry_after.total_seconds()
        return wait

    def _request(
        self,
        method: str,
        path: str,
        params: Parameters | None,
        headers: Mapping[str, str] | None,
        content: bytes | AsyncIterator[bytes] | None,
        silence: float,
    ) -> httpx.Request:
        given = {name: _text(value) for name, value in (params or {}).items() if value is not None}
        usual = self._http.timeout
        read = None if usual.read is None else usual.read + silence
        timeout = httpx.Timeout(connect=usual.connect, read=read, write=usual.write, pool=usual.pool)
        return self._http.build_request(method, path, params=given, headers=headers, content=content, timeout=timeout)

    async def _send(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        try:
            response = await self._http.send(request, stream=stream)
            if response.status_code >= 400:
                await response.aread()
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise self._failed(request, error) from error
        if response.status_code >= 400:
            raise problem_of(response)
        if response.is_redirect and response.status_code != 304:
            await response.aclose()
            elsewhere = response.headers.get("location", "elsewhere")
            raise self._unexpected(request, f"the answer ({response.status_code}) redirects to {elsewhere}")
        return response

    def _failed(self, request: httpx.Request, error: httpx.RequestError) -> ClientError:
        said = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, httpx.DecodingError):
            return self._unexpected(request, said)
        message = f"{request.method} {self._address}{request.url.path}: {said}"
        kind = TimedOutError if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)) else ConnectionFailedError
        return kind(message, perhaps_done=not isinstance(error, (*_NOT_SENT, *_HOPELESS)))

    def _unexpected(self, request: httpx.Request, said: str) -> UnexpectedAnswerError:
        return UnexpectedAnswerError(
            f"{request.method} {self._address}{request.url.path}: {said}; is the address right?"
        )

    async def _repeat(
        self, once: Callable[[], Awaitable[httpx.Response]], *, repeatable: bool, retry: Retry, whole: bool
    ) -> httpx.Response:
        """`whole`: the request can be made again, because its body is at hand."""
        clock = asyncio.get_running_loop().time
        end = clock() + retry.total
        failures = 0
        perhaps_done = False
        while True:
            try:
                return await once()
            except ConnectionFailedError as error:
                perhaps_done = error.perhaps_done = perhaps_done or error.perhaps_done
                may_repeat = repeatable or not error.perhaps_done
                may_repeat = may_repeat and not isinstance(error.__cause__, _HOPELESS)
                failure: ClientError = error
            except ProblemError as error:
                may_repeat = repeatable and error.status in PASSING_STATUSES and error.type != LATE
                may_repeat = may_repeat or (whole and error.type == RATE_LIMITED)
                failure = error
            failures += 1
            wait = self.wait(failure, failures, retry)
            if not may_repeat or failures >= retry.attempts or clock() + wait >= end:
                raise failure
            await self.sleep(wait)


def read(response: httpx.Response, answer: type[T]) -> T:
    """Decode the body of a successful answer. Raises UnexpectedAnswerError if it is not an `answer`."""
    return decode(response.content, answer, response.status_code)


def decode(body: bytes, answer: type[T], status: int = 200) -> T:
    """Decode a body, or a line of one. Raises UnexpectedAnswerError if it is not an `answer`."""
    try:
        return msgspec.json.decode(body, type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the answer (status {status}) is not one of this service: {error}; is the address right?"
        raise UnexpectedAnswerError(message) from None


def _text(value: object) -> str | list[str]:
    """A query parameter as the service reads it: a time in RFC 3339, a repeated parameter as a list."""
    if isinstance(value, list | tuple | set | frozenset):
        return [str(_text(item)) for item in value]
    return value if isinstance(value, str) else msgspec.json.encode(value).decode().strip('"')
