"""The faults: each is a function of the servers and of dice, made in a thread, and returns a description.

A lane makes its faults one after the other; the lanes run side by side.
"""

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

from msgspec import Struct

from tests.faults.cluster import ROLE
from tests.faults.programs import Program
from tests.faults.proxy import Mode
from tests.faults.servers import TOPIC_IN, Servers

HUNG_UP = "clients hung up"
HANG_UPS = 100  # of one fault
RESTARTED = "is read from its first message"
CONNECTIONS = 3  # that the service's role may have, for a while
PATIENCE = 45.0  # seconds
POLL = 0.05  # seconds


class Made(Struct, frozen=True):
    """A fault in words, and how often it was made; `back` is the moment at which the database was there again."""

    detail: str = ""
    back: float | None = None
    times: int = 1


Make = Callable[[Servers, Random], Made]

# --- Services and workers -------------------------------------------------------------------------------------------


def _killed(choose: Callable[[Servers], Program], servers: Servers, _: Random) -> Made:
    """kill -9 of a command, which is started again at once."""
    program = choose(servers)
    program.kill()
    program.start()
    return Made()


def _stopped(choose: Callable[[Servers], Program], servers: Servers, dice: Random) -> Made:
    """SIGSTOP of a command, and SIGCONT up to three seconds later."""
    program, seconds = choose(servers), dice.uniform(0.1, 3)
    program.signal(signal.SIGSTOP)
    time.sleep(seconds)
    program.signal(signal.SIGCONT)
    return Made(f"{seconds:.1f} s")


def _worker_killed(servers: Servers, dice: Random) -> Made:
    """kill -9 of one of a service's two workers, which its supervisor replaces."""
    end = time.monotonic() + PATIENCE
    while not (found := servers.pair.workers()):
        assert time.monotonic() < end
        time.sleep(POLL)
    with suppress(ProcessLookupError):
        os.kill(dice.choice(found), signal.SIGKILL)
    return Made()


def _hang_ups(servers: Servers, dice: Random) -> Made:
    """A hundred clients that hang up at some byte of their request, or before their answer; some by a reset."""
    event = b'{"event_id": "9b2f6f39-0d3b-4a0e-8f0e-000000000000", "type": "registration.initiated"'
    post = b"POST /v1/events HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: "
    requests = (
        b"GET /v1/entities?limit=1000 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET /v1/changes?after=now&wait=10 HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n",
        post + b"application/json\r\ncontent-length: 5000\r\n\r\n" + event,
        post + b"application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event),
    )
    made = 0
    for _ in range(HANG_UPS):
        request, service, resets = dice.choice(requests), dice.choice(servers.services), dice.random() < 0.5
        sent = request[: dice.randint(1, len(request))] if dice.random() < 0.5 else request
        with suppress(OSError), socket.create_connection(("127.0.0.1", service.port), 1) as client:
            client.sendall(sent)
            time.sleep(dice.uniform(0, 0.01))
            if resets:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made += 1
    return Made(times=made)


# --- The database ---------------------------------------------------------------------------------------------------


def _postgres_killed(servers: Servers, _: Random) -> Made:
    """kill -9 of PostgreSQL's first process; it is started again at once, and recovers."""
    servers.cluster.kill(servers.cluster.primary)
    return Made(back=servers.cluster.await_writes())


def _backend_killed(servers: Servers, dice: Random) -> Made:
    """kill -9 of a process that serves a session of ours; PostgreSQL then restarts by itself."""
    found = servers.cluster.backends()
    if not found:
        return Made("none was there", times=0)
    os.kill(dice.choice(found), signal.SIGKILL)
    _await(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found), "PostgreSQL ends all sessions")
    return Made(back=servers.cluster.await_writes())


def _standby_killed(servers: Servers, _: Random) -> Made:
    """kill -9 of the synchronous standby; commits wait until it is there again."""
    servers.cluster.kill(servers.cluster.standby)
    return Made(back=servers.cluster.await_writes())


def _failed_over(servers: Servers, _: Random) -> Made:
    """kill -9 of the primary with all its processes, and promotion of the synchronous standby."""
    return Made(back=servers.cluster.fail_over())


def _postgres_stopped(servers: Servers, dice: Random) -> Made:
    """SIGSTOP of all processes of PostgreSQL, and SIGCONT up to six seconds later."""
    seconds = dice.uniform(0.2, 6)
    servers.cluster.pause(seconds)
    return Made(f"{seconds:.1f} s", back=servers.cluster.await_writes())


def _network(name: str, servers: Servers, dice: Random) -> Made:
    """A fault of the network between the services and the database, for up to six seconds."""
    seconds = dice.uniform(0.2, 6 if name == "stalled" else 2)
    modes = {
        "cut": Mode(cut=True),
        "refused": Mode(cut=True, refuse=True),
        "stalled": Mode(stall=True),
        "delayed": Mode(delay=dice.uniform(0.02, 0.3)),
        "narrowed": Mode(rate=dice.choice((20_000, 50_000, 200_000))),
    }
    servers.cluster.proxy.set(modes[name])
    time.sleep(0 if name == "cut" else seconds)
    servers.cluster.proxy.set(Mode())
    return Made(f"{seconds:.1f} s", back=servers.cluster.await_writes())


def _disk_filled(servers: Servers, dice: Random) -> Made:
    """No room on the disk of both servers, for up to three seconds."""
    if not servers.cluster.has_small_disk:
        return Made("a small disk cannot be mounted here", times=0)
    servers.cluster.fill_disk(seconds := dice.uniform(0.5, 3))
    return Made(f"{seconds:.1f} s", back=servers.cluster.await_writes())


def _connections_limited(servers: Servers, dice: Random) -> Made:
    """A limit of three connections for the services' role, for up to three seconds, after a loss of all."""
    limit = "CONNECTION LIMIT"
    return _role_altered(servers, f"{limit} {CONNECTIONS}", f"{limit} -1", dice.uniform(0.5, 3))


def _read_only(servers: Servers, dice: Random) -> Made:
    """A database that takes no writes, for up to two seconds, after a loss of all connections."""
    setting = "default_transaction_read_only"
    return _role_altered(servers, f"SET {setting} = on", f"RESET {setting}", dice.uniform(0.2, 2))


def _role_altered(servers: Servers, how: str, back: str, seconds: float) -> Made:
    """The services' role altered for some seconds, and all its connections lost at their beginning."""
    servers.cluster.sql(f"ALTER ROLE {ROLE} {how}")
    servers.cluster.disconnect()
    time.sleep(seconds)
    servers.cluster.sql(f"ALTER ROLE {ROLE} {back}")
    return Made(f"{seconds:.1f} s", back=servers.cluster.await_writes())


def _row_locked(servers: Servers, dice: Random) -> Made:
    """A tenth of the rows locked by another client, for up to three seconds."""
    seconds = dice.uniform(0.2, 3)
    servers.cluster.sql(
        "BEGIN; SELECT count(*) FROM (SELECT FROM registration_projections"
        f" WHERE get_byte(uuid_send(entity_id), 0) % 10 = {dice.randrange(10)} FOR UPDATE) AS locked;"
        f" SELECT pg_sleep({seconds}); COMMIT"
    )
    return Made(f"{seconds:.1f} s", back=servers.cluster.await_writes())


def _table_locked(servers: Servers, dice: Random) -> Made:
    """A table locked against reads and writes by another client, for up to two seconds."""
    seconds = dice.uniform(0.2, 2)
    table = dice.choice(("registration_projections", "outbox", "changes", "workflow_state", "watermarks"))
    servers.cluster.sql(
        f"BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;"
        f" SELECT pg_sleep({seconds}); COMMIT"
    )
    return Made(f"{table}, {seconds:.1f} s", back=servers.cluster.await_writes())


# --- Kafka ----------------------------------------------------------------------------------------------------------


def _kafka_killed(servers: Servers, _: Random) -> Made:
    """kill -9 of Kafka, which is started again at once."""
    assert servers.kafka is not None
    servers.kafka.kill()
    servers.kafka.start()
    return Made()


def _kafka_stopped(servers: Servers, dice: Random) -> Made:
    """SIGSTOP of Kafka, and SIGCONT up to five seconds later."""
    assert servers.kafka is not None
    servers.kafka.pause(seconds := dice.uniform(0.2, 5))
    return Made(f"{seconds:.1f} s")


def _partition_added(servers: Servers, _: Random) -> Made:
    """One more partition of the topic that is read, between two messages."""
    assert servers.kafka is not None
    _at_rest(servers)
    number = servers.kafka.add_partition(TOPIC_IN)
    servers.producer.go_on()
    return Made(f"{number} partitions")


def _topic_remade(servers: Servers, _: Random) -> Made:
    """The topic that is read deleted and created again; the consumer ends, and is started with --restarted."""
    assert servers.kafka is not None
    _at_rest(servers)
    servers.kafka.remake(TOPIC_IN)
    try:
        _await(lambda: not servers.consumer.runs(), "the consumer notices a topic that was created again")
    finally:
        servers.consumer.signal(signal.SIGUSR2)  # its log gets the stacks of its threads
        servers.consumer.kill()
        said = servers.consumer.log.read_text().count(RESTARTED)
        servers.consumer.start("--restarted", TOPIC_IN)
        _await(lambda: _has_restarted(servers, said), "the topic is read from its first message")
        servers.producer.go_on()
    return Made()


def _has_restarted(servers: Servers, said: int) -> bool:
    """Whether the consumer says so once more. One that the database's faults have ended is started again."""
    if servers.consumer.log.read_text().count(RESTARTED) > said:
        return True
    if not servers.consumer.runs():
        servers.consumer.kill()
        servers.consumer.start("--restarted", TOPIC_IN)
    return False


def _at_rest(servers: Servers) -> None:
    """Wait until the producer is idle and the consumer has taken in everything."""
    servers.producer.pause()
    _await(lambda: servers.unread() == 0, "the consumer catches up")


def _await(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(AssertionError):  # the database may be away
            if condition():
                return
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(POLL)


SERVICES: Mapping[str, Make] = {
    "service killed": partial(_killed, lambda servers: servers.service),
    "service stopped": partial(_stopped, lambda servers: servers.service),
    "worker killed": _worker_killed,
    "supervisor killed": partial(_killed, lambda servers: servers.pair),
    "sweep killed": partial(_killed, lambda servers: servers.sweep),
    "sweep stopped": partial(_stopped, lambda servers: servers.sweep),
    HUNG_UP: _hang_ups,
}
DATABASE: Mapping[str, Make] = {
    "PostgreSQL killed": _postgres_killed,
    "PostgreSQL's backend killed": _backend_killed,
    "PostgreSQL stopped": _postgres_stopped,
    "standby killed": _standby_killed,
    "failover": _failed_over,
    "network cut": partial(_network, "cut"),
    "network refused": partial(_network, "refused"),
    "network stalled": partial(_network, "stalled"),
    "network delayed": partial(_network, "delayed"),
    "network narrowed": partial(_network, "narrowed"),
    "disk filled": _disk_filled,
    "connections limited": _connections_limited,
    "database read-only": _read_only,
    "rows locked": _row_locked,
    "table locked": _table_locked,
}
KAFKA: Mapping[str, Make] = {
    "relay killed": partial(_killed, lambda servers: servers.relay),
    "relay stopped": partial(_stopped, lambda servers: servers.relay),
    "consumer killed": partial(_killed, lambda servers: servers.consumer),
    "consumer stopped": partial(_stopped, lambda servers: servers.consumer),
    "Kafka killed": _kafka_killed,
    "Kafka stopped": _kafka_stopped,
    "partition added": _partition_added,
    "topic remade": _topic_remade,
}
LANES: Mapping[str, Mapping[str, Make]] = {"services": SERVICES, "database": DATABASE, "kafka": KAFKA}
