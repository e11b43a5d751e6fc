"""The door of a TLS service: each connection is counted before its handshake, and the handshake has its time.

A server of the event loop tells its protocol of a connection when the handshake is done. Connections that never get
that far would be counted by nobody, though each takes a descriptor.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from app.runtime.connections import HEALTH_SECONDS, ConnectionPlace, Connections
from app.runtime.waits import CLOSE_SECONDS

log = logging.getLogger(__name__)

NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
PAUSE = 1.0  # seconds until connections are taken again, when there were no descriptors


class TlsDoor:
    """Takes the connections of a socket that listens, until it is closed: by uvicorn, as asyncio's servers are."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        budget: Connections,
        protocol: Callable[[ConnectionPlace], asyncio.Protocol],
        *,
        handshake: float,
    ) -> None:
        """`protocol` makes that of a connection with a place in `budget`; a handshake may take so many seconds."""
        listener.setblocking(False)
        self._listener = listener
        self._context = context
        self._budget = budget
        self._protocol = protocol
        self._seconds = handshake
        self._handshakes: set[asyncio.Task[None]] = set()
        self._taking = asyncio.create_task(self._take())

    def close(self) -> None:
        """Take no more connections, and break off those whose handshake is not done."""
        for each in (self._taking, *self._handshakes):
            each.cancel()

    async def wait_closed(self) -> None:
        """Wait until nobody uses the socket any more."""
        await asyncio.gather(self._taking, *self._handshakes, return_exceptions=True)

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    log.warning("no connection can be taken: %s", error.strerror)
                    await asyncio.sleep(PAUSE)
                continue  # that connection is gone already
            place = ConnectionPlace(self._budget, peer)
            if place.is_refused:  # a 503 would need a handshake, and that is what there is no room for
                connection.close()
                continue
            task = asyncio.create_task(self._shake_hands(connection, place))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, place: ConnectionPlace) -> None:
        try:
            # What goes wrong, this client has done: others send no TLS at all, or leave.
            with suppress(OSError, ssl.SSLError, TimeoutError):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: self._protocol(place),
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=HEALTH_SECONDS if place.is_reserved else self._seconds,
                    ssl_shutdown_timeout=CLOSE_SECONDS,
                )
                return
            place.give_back()
        except BaseException:
            place.give_back()
            raise
