"""The faults: each is a function of the servers and of dice, made in a thread, and says what it took away."""

from collections.abc import Callable, Mapping
from random import Random

from msgspec import Struct

from tests.faults.servers import Servers


class Made(Struct, frozen=True):
    """What was made: in words, and how often. `back`: the database was taken away, and is there again now."""

    detail: str = ""
    back: bool = False
    times: int = 1


Make = Callable[[Servers, Random], Made]


def kill_service(servers: Servers, _: Random) -> Made:
    """kill -9 of a service, which is started again at once."""
    servers.service.kill()
    servers.service.start()
    return Made()


SERVICES: Mapping[str, Make] = {"service killed": kill_service}
LANES: Mapping[str, Mapping[str, Make]] = {"services": SERVICES}
