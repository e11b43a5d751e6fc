"""HTTP/1.1 on one connection, for uvicorn's `http=` slot: one parser and one rule of framing for every request.

A connection carries out one request after the other, and answers them in the order in which they came. Requests
that the application answers directly need no task and no ASGI messages; every other request is an ASGI exchange. All
that a client can make grow has a bound here (heads, bodies that nobody takes, requests that wait, answers that nobody
reads), and so has every wait for a client that is to send something.

The application may have three attributes: `connections` says how many there may be; `direct(method, target,
headers, peer)` returns a DirectCall, or None for a request of ASGI's (`peer` is the address of the client, or `-`);
`refuse(status, detail, headers, counted=, peer=)` returns the answer to a request that is not carried out.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Any, cast

from uvicorn import Config
from uvicorn.server import ServerState

from app.runtime.connections import HEALTH_SECONDS, UNBOUNDED, ConnectionPlace, Connections, name_of, turned_away
from app.runtime.exchange import (
    STATUS_LINES,
    App,
    DirectCall,
    DirectExchange,
    Exchange,
    HttpAnswer,
    never,
    refuse_plainly,
    scope_of,
)
from app.runtime.framing import (
    MAX_HEAD,
    NO_BODY,
    ChunkedBody,
    Fields,
    FramingError,
    Headers,
    SizedBody,
    check_stray,
    read_head,
    too_large,
)
from app.runtime.waits import (
    BODY_SECONDS,
    CLOSE_SECONDS,
    GOODBYE_SECONDS,
    HEAD_SECONDS,
    LINGER_SECONDS,
    READER_SECONDS,
    Awaited,
    WaitTimer,
)

log = logging.getLogger(__name__)

HIGH_WATER = 64 * 1024  # bytes that are held of what a client sends before anybody wants it


class HttpProtocol(asyncio.Protocol):
    """One connection."""

    # The header lines of every answer, as they were last put together: uvicorn makes the list anew each second.
    _defaults: tuple[Headers, bytes] = ([], b"")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        place: ConnectionPlace | None = None,
        reader_seconds: float = READER_SECONDS,
    ) -> None:
        """`place`: the connection was counted already, before its TLS handshake."""
        if not config.loaded:
            config.load()
        self._loop, self._app = _loop or asyncio.get_running_loop(), cast("App", config.loaded_app)
        self._direct: Callable[[str, bytes, Headers, str], DirectCall | None] = getattr(self._app, "direct", never)
        self._refuse: Callable[..., HttpAnswer] = getattr(self._app, "refuse", refuse_plainly)
        self._budget: Connections = getattr(self._app, "connections", UNBOUNDED)
        self._given_place, self._reader_seconds = place, reader_seconds
        self._idle_seconds: float = config.timeout_keep_alive
        self._root_path = config.root_path
        self._server_state = server_state
        self._connections = cast("set[asyncio.Protocol]", server_state.connections)
        self._app_state = app_state
        self._transport: asyncio.Transport
        # What was read and is not used up, and how far it was searched for the end of a head.
        self._buffer, self._searched = bytearray(), 0
        self._fields: Fields | None = None
        self._exchange: Exchange | DirectExchange | None = None
        self._asked: Headers = []  # the fields of its request
        self._body: SizedBody | ChunkedBody | None = None  # of the exchange
        self._reading, self._closing, self._eof = True, False, False
        self._unsent = 0  # bytes of the last answer, when the connection was to be closed
        self.blocked: asyncio.Event | None = None  # while the client does not read
        self._wait = WaitTimer(self._loop, self._on_time)

    # --- What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._half_closes = self._transport.can_write_eof()  # TLS has no half of a connection
        self._context = contextvars.copy_context()  # of no request: each begins with a copy of it
        self._connections.add(self)
        peer = transport.get_extra_info("peername")
        self._peer = name_of(peer)
        self._place = self._given_place or ConnectionPlace(self._budget, peer)
        if self._place.is_reserved:
            self._idle_seconds = HEALTH_SECONDS
        self._wait.begin(Awaited.REQUEST, self._idle_seconds or HEAD_SECONDS)
        if self._place.is_refused:
            self._end_with(turned_away())

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        if self._closing:
            return
        self._buffer += data
        self._go_on()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read: what it has asked for whole is answered."""
        self._eof = True
        exchange = self._exchange
        if exchange is not None:
            exchange.client_sends_no_more()
        if self._closing or not self._half_closes or (exchange is not None and exchange.more_body):
            return False  # the transport closes, after what was written
        if exchange is None:
            return self.blocked is not None  # whole requests may wait until it has read the answers before
        if not self._buffer:
            exchange.keep_alive = False
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        """The connection is no more. What was begun goes on; nobody hears of it."""
        self._closing = True
        self._connections.discard(self)
        self._place.give_back()
        self._wait.cancel()
        if self._exchange is not None:
            self._exchange.disconnect()
        self.resume_writing()

    def pause_writing(self) -> None:
        """The client does not read."""
        self.blocked = asyncio.Event()
        self._await_reader()

    def resume_writing(self) -> None:
        """It reads again, or is gone."""
        if self.blocked is not None:
            self.blocked.set()
            self.blocked = None
            if not self._closing:
                self._go_on()

    # --- What uvicorn's server calls

    def shutdown(self) -> None:
        """Close the connection, after the answer to a request that has begun."""
        exchange = self._exchange
        if exchange is None or exchange.complete or self._closing:
            self._closing = True
            if not self._transport.is_closing():
                self._transport.close()
            if not self._half_closes:  # it now waits for the client, which may not look at an idle connection
                self._loop.call_later(GOODBYE_SECONDS, self._transport.abort)
        else:
            exchange.keep_alive = False

    # --- Requests

    def _go_on(self) -> None:
        """Use up what was read, as far as it goes."""
        try:
            while not self._closing and (self._exchange is not None or self._begin()):
                exchange, body = self._exchange, self._body
                if exchange is None or body is None:
                    break
                if exchange.more_body:
                    if exchange.held > HIGH_WATER:
                        break
                    piece = b"" if body.ended else body.take(self._buffer)
                    exchange.feed(piece, ended=body.ended)
                    if exchange.more_body:
                        break
                if not exchange.complete:
                    break
                self._exchange = None
        except FramingError as error:
            self._end_with(error)
        if self._exchange is None or self._buffer or self._wait.awaited is not None or self._exchange.more_body:
            self._look_after_the_client()  # else it is for the application to answer, and nothing was missing

    def _begin(self) -> bool:
        """Begin to carry out the next request, when its head is there."""
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # RFC 9112, section 2.2
            del buffer[:2]
            self._searched = 0
        if not buffer or self.blocked is not None:
            return False
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3), MAX_HEAD + 4)
        if end < 0:
            check_stray(buffer, max(0, self._searched - 1))
            if len(buffer) >= MAX_HEAD + 4:
                raise too_large(buffer)
            self._searched = len(buffer)
            return False
        self._searched = 0
        head, self._fields = read_head(bytes(buffer[:end]), self._fields)
        head.keep_alive = head.keep_alive and not self._budget.draining
        if self._place.is_reserved:
            self._place.check(head)
        del buffer[: end + 4]
        self._wait.awaited = None
        self._asked = head.headers
        if head.length == 0:
            self._body = NO_BODY
        else:
            self._body = ChunkedBody() if head.length is None else SizedBody(head.length)
        call = self._direct(head.method, head.target, head.headers, self._peer)
        if call is not None:
            self._exchange = DirectExchange(self, call, keep_alive=head.keep_alive)
            return True
        self._exchange = exchange = Exchange(
            self, head, scope_of(head, self._transport, self._root_path, self._app_state)
        )
        task = self._loop.create_task(exchange.run(self._app), context=self._context.copy())
        task.add_done_callback(self._server_state.tasks.discard)
        self._server_state.tasks.add(task)
        return True

    # --- What exchanges call

    def default_headers(self) -> bytes:
        """The header lines that every answer begins with: uvicorn's date, and what its configuration adds."""
        headers = self._server_state.default_headers
        if self._defaults[0] is not headers:
            HttpProtocol._defaults = (headers, b"".join(b"%b: %b\r\n" % header for header in headers))
        return self._defaults[1]

    def write(self, data: bytes) -> None:
        """Send bytes, unless the connection is no more."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has read enough for more to be sent, or is gone."""
        while self.blocked is not None:
            await self.blocked.wait()

    def wants_body(self) -> None:
        """Read on: what was read of the body is used up."""
        exchange = self._exchange
        if exchange is not None and exchange.more_body:
            if self._buffer:
                self._loop.call_soon(self._go_on)
            else:
                self._look_after_the_client()

    def write_answer(self, answer: HttpAnswer, *, keep_alive: bool, lines: bytes = b"", bare: bool = False) -> None:
        """Send a whole answer at once. `lines` are further headers."""
        status, headers, body = answer
        parts = [STATUS_LINES[status], self.default_headers()]
        parts += [b"%b: %b\r\n" % header for header in headers]
        parts += (lines, b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
        if not bare:
            parts.append(body)
        self.write(b"".join(parts))

    def answered(self) -> None:
        """The answer is complete: go on with the next request, or close."""
        exchange = self._exchange
        if exchange is None or self._closing:
            return
        self._server_state.total_requests += 1
        if not exchange.keep_alive or (self._eof and not self._buffer):
            self._close(linger=exchange.more_body or bool(self._buffer))
        elif self._buffer or exchange.more_body or not self._reading or self.blocked is not None:
            self._go_on()
        else:  # nothing else is there, as nearly always
            self._exchange = None
            self._wait.begin(Awaited.REQUEST, self._idle_seconds)

    def fail(self, *, started: bool) -> None:
        """The application broke off: nothing but the end of the connection can say so, once an answer has begun."""
        if self._closing:
            return
        if started:
            self._closing = True
            self._transport.abort()
        else:
            self._end_with(FramingError(500, "an error inside the service"))

    # --- The end of a connection

    def _end_with(self, error: FramingError) -> None:
        """Answer what is not carried out, and close."""
        exchange = self._exchange
        bare = self._buffer.startswith(b"HEAD ") if exchange is None else exchange.bare
        if exchange is not None:
            exchange.disconnect()
        if exchange is not None and exchange.started:
            if exchange.complete:  # what came after it can no longer be answered, and need not be
                self._close(linger=True)
            else:
                self.fail(started=True)
            return
        answer = self._refuse(
            error.status,
            str(error),
            error.headers or (self._asked if exchange is not None else []),
            counted=exchange is None and not self._place.is_refused,
            peer=self._peer,
        )
        self.write_answer(answer, keep_alive=False, bare=bare)
        self._close(linger=not self._place.is_refused)  # that takes a descriptor, and there is none to spare

    def _close(self, *, linger: bool) -> None:
        """Close, after what was written. A client that still sends would lose it by a reset: it gets time to read."""
        self._closing = True
        self._buffer.clear()
        if self._transport.is_closing():
            return
        if linger and not self._eof:
            if self._half_closes:
                self._transport.write_eof()
            self._wait.begin(Awaited.CLOSE, LINGER_SECONDS)
            self._read(on=True)
        else:
            self._unsent = self._transport.get_write_buffer_size()
            self._transport.close()
            self._wait.begin(Awaited.CLOSE, CLOSE_SECONDS)

    # --- Time and flow

    def _look_after_the_client(self) -> None:
        """Read on or not, and bound the time in which the client has to send what is missing."""
        if self._closing:
            return
        exchange, wait = self._exchange, self._wait
        self._read(on=len(self._buffer) <= HIGH_WATER and (exchange is None or exchange.held <= HIGH_WATER))
        if self.blocked is not None:  # it has to read first
            if wait.awaited is not Awaited.READER:
                self._await_reader()
        elif exchange is None:
            if self._eof:  # a part of the next request is there, or nothing
                self._close(linger=False)
            elif self._buffer:
                if wait.awaited is not Awaited.HEAD:
                    wait.begin(Awaited.HEAD, HEALTH_SECONDS if self._place.is_reserved else HEAD_SECONDS)
            elif wait.awaited not in {Awaited.REQUEST, Awaited.HEAD}:  # blank lines are not the end of a head's time
                wait.begin(Awaited.REQUEST, self._idle_seconds)
        elif exchange.waits_for_client and self._reading:
            wait.begin(Awaited.BODY, BODY_SECONDS)
        else:
            wait.awaited = None

    def _await_reader(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._wait.begin(Awaited.READER, self._reader_seconds)

    def _read(self, *, on: bool) -> None:
        if on is self._reading or self._eof or self._transport.is_closing():
            return
        self._reading = on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _on_time(self, awaited: Awaited) -> None:
        """The client has let the time pass."""
        if awaited is Awaited.HEAD:
            self._end_with(FramingError(408, "the header section did not come in time"))
        elif awaited is Awaited.BODY:
            self._end_with(FramingError(408, f"nothing of the body came for {BODY_SECONDS:.0f} seconds"))
        elif awaited is Awaited.READER:
            self._abort_if_stuck(Awaited.READER, self._reader_seconds)
        elif awaited is Awaited.CLOSE and self._transport.is_closing():
            self._abort_if_stuck(Awaited.CLOSE, CLOSE_SECONDS)
        else:
            self._close(linger=False)

    def _abort_if_stuck(self, what: Awaited, seconds: float) -> None:
        """Break a connection off whose client has read nothing of what waits for it since this was called before."""
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent = unsent
            self._wait.begin(what, seconds)
        else:
            self._transport.abort()
