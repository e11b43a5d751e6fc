"""The waits of a connection for its client, and their bounds in seconds."""

import enum

HEAD_SECONDS = 10.0  # that a request line and header section may take
BODY_SECONDS = 30.0  # without a byte of a body that is waited for
LINGER_SECONDS = 2.0  # that a client has to read its last answer, while what it still sends is dropped
READER_SECONDS = 30.0  # in which a client has to read some of what waits for it
CLOSE_SECONDS = 30.0  # until a connection that does not get closed is broken off
GOODBYE_SECONDS = 0.5  # that a client has to end its side of an idle TLS connection, when the service stops


class Awaited(enum.Enum):
    """What a connection waits for."""

    REQUEST = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    READER = enum.auto()  # the client is to read what was sent to it
    CLOSE = enum.auto()
