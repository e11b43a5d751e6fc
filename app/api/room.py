"""Room for request bodies: how many bytes of them this process holds at once, in all and for each peer address.

A body is held from its first byte until its request is answered, and of a stream whatever is not in the database yet.
A body that finds no room is refused (503 with `Retry-After`), and gives its bytes back. The other way would be to
stop reading: then every sender would hold a part and wait for the others, and no body would ever be complete.

What a connection has received and nobody has asked for yet is not counted here: the protocol bounds that for each
connection, and the number of connections.
"""

import sys
from collections import Counter
from datetime import timedelta

from fastapi import Request

from app.errors import NoRoomError
from app.runtime.connections import peer_of

PART_OF_A_PEER = 2  # one address has half of the room: behind a proxy, everybody has one address
MAX_FILES = 32  # temporary files of long answers: each takes a descriptor, which a connection might need
RETRY_AFTER = timedelta(seconds=2)
HELD = "pqs.held"  # in the ASGI scope of a request: what it holds


class Room:
    """The room of a process."""

    def __init__(self, most: int) -> None:
        """`most` is PQS_BODY_MEMORY, in bytes."""
        self.most = most
        self.most_of_a_peer = max(1, most // PART_OF_A_PEER)
        self._bytes = 0
        self._of_peers: Counter[str] = Counter()
        self._files = 0
        self._files_of_peers: Counter[str] = Counter()

    def take(self, peer: str | None, size: int) -> None:
        """Count bytes in. Raises NoRoomError, and counts nothing, where they do not fit."""
        if self._bytes + size > self.most:
            raise NoRoomError(
                f"this process holds as many bytes of request bodies as it may ({self.most:,}, PQS_BODY_MEMORY)",
                retry_after=RETRY_AFTER,
            )
        if peer is not None and self._of_peers[peer] + size > self.most_of_a_peer:
            raise NoRoomError(
                f"the request bodies of your address take up its share of this process ({self.most_of_a_peer:,} "
                "bytes, half of PQS_BODY_MEMORY)",
                retry_after=RETRY_AFTER,
            )
        self._bytes += size
        if peer is not None:
            self._of_peers[peer] += size

    def give_back(self, peer: str | None, size: int) -> None:
        """Count bytes out that were counted in."""
        self._bytes -= size
        if peer is not None:
            self._of_peers[peer] -= size
            if not self._of_peers[peer]:
                del self._of_peers[peer]

    def take_file(self, peer: str | None) -> None:
        """Count a temporary file in. Raises NoRoomError where there are as many as there may be."""
        is_full = peer is not None and self._files_of_peers[peer] >= MAX_FILES // PART_OF_A_PEER
        if is_full or self._files >= MAX_FILES:
            raise NoRoomError("as many long answers are being read as there may be", retry_after=RETRY_AFTER)
        self._files += 1
        if peer is not None:
            self._files_of_peers[peer] += 1

    def give_back_file(self, peer: str | None) -> None:
        """Count a temporary file out that was counted in."""
        self._files -= 1
        if peer is not None:
            self._files_of_peers[peer] -= 1
            if not self._files_of_peers[peer]:
                del self._files_of_peers[peer]


class Hold:
    """What one request holds of a room, until it is closed."""

    def __init__(self, room: Room, peer: str | None) -> None:
        self._room = room
        self._peer = peer
        self._bytes = 0
        self._files = 0

    def take(self, size: int) -> None:
        """Hold more bytes. Raises NoRoomError."""
        self._room.take(self._peer, size)
        self._bytes += size

    def give_back(self, size: int) -> None:
        """Hold fewer bytes."""
        self._room.give_back(self._peer, size)
        self._bytes -= size

    def take_file(self) -> None:
        """Hold a temporary file. Raises NoRoomError."""
        self._room.take_file(self._peer)
        self._files += 1

    def close(self) -> None:
        """Hold nothing any more."""
        self.give_back(self._bytes)
        while self._files:
            self._room.give_back_file(self._peer)
            self._files -= 1


UNLIMITED = Room(sys.maxsize)  # of an application that says nothing of it


def held_by(request: Request) -> Hold:
    """What a request holds. The middleware closes it after the answer (`app/api/context.py`)."""
    held: Hold | None = request.scope.get(HELD)
    if held is None:
        client = request.scope.get("client")
        room = getattr(request.app.state, "room", UNLIMITED)
        held = request.scope[HELD] = Hold(room, peer_of(client[0] if client else None))
    return held
