"""A follower's place in the change log, as text that a client stores."""

import hashlib
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

from msgspec import Struct

from app.errors import BadTokenError
from app.store.changes import Place

CHECK = 6  # bytes of the checksum
DAMAGED = "the token is damaged: send one exactly as it was given"

NO_KEY = bytes(16)
_PLACE = struct.Struct(">Bqi")  # kind, id, mark
_SNAPSHOT = struct.Struct(">Bqi16s4s")  # the same, the entity id after which the rows go on, the digest of the filter
_FOLLOWING, _IN_SNAPSHOT, _BEFORE_SNAPSHOT = 1, 2, 3


class Token(Struct, frozen=True):
    """A place in the log; in a snapshot also its filter's digest, and the entity up to which rows were given.

    A snapshot is bound to its filter, because its rows are. `key` is None as long as no row was given.
    """

    place: Place
    key: UUID | None = None
    digest: bytes = b""


def write(token: Token) -> str:
    """The token as text of URL-safe characters, with a checksum."""
    place = token.place
    if not token.digest:
        return _sealed(_PLACE.pack(_FOLLOWING, place.id, place.mark))
    kind, key = (_BEFORE_SNAPSHOT, NO_KEY) if token.key is None else (_IN_SNAPSHOT, token.key.bytes)
    return _sealed(_SNAPSHOT.pack(kind, place.id, place.mark, key, token.digest))


def read(text: str) -> Token:
    """The token that `write` made. Raises BadTokenError when it was cut, lengthened or altered."""
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError:
        raise BadTokenError(DAMAGED) from None
    body = raw[CHECK:]
    # Decoding passes over characters that are not base64, so the text is compared with what it should be.
    if raw[:CHECK] != _digest(body) or urlsafe_b64encode(raw).rstrip(b"=").decode() != text:
        raise BadTokenError(DAMAGED)
    if len(body) == _PLACE.size and body[0] == _FOLLOWING:
        _, id_, mark = _PLACE.unpack(body)
        return Token(Place(id_, mark))
    if len(body) == _SNAPSHOT.size and body[0] in {_IN_SNAPSHOT, _BEFORE_SNAPSHOT}:
        kind, id_, mark, key, digest = _SNAPSHOT.unpack(body)
        return Token(Place(id_, mark), None if kind == _BEFORE_SNAPSHOT else UUID(bytes=key), digest)
    raise BadTokenError(DAMAGED)  # another release may have sealed it


def digest_of(filter_: object) -> bytes:
    """What binds a snapshot to its filter."""
    return hashlib.blake2b(repr(filter_).encode(), digest_size=4).digest()


def _sealed(body: bytes) -> str:
    return urlsafe_b64encode(_digest(body) + body).rstrip(b"=").decode()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECK).digest()
