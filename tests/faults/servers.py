"""The servers of a campaign: the cluster, Kafka, and the commands of `pqs` that use them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.cluster import DATABASE, ROLE, Cluster, clustered
from tests.faults.kafka import Kafka
from tests.faults.launcher import Launcher
from tests.faults.messages import Producing
from tests.faults.programs import Program, Serving
from tests.processes import pqs

TOPIC_IN, TOPIC_OUT = "node-events", "registration-events"
FAR = 86_400  # seconds: no deadline passes by itself
GRANTS = (
    f"CREATE ROLE {ROLE} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}; "
    f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}"
)


class Servers:
    """All servers. `steady` is a service that no fault of the services' lane hits; `pair` has two workers."""

    producer: Producing  # of the messages that are read: an operator pauses it before a topic changes

    def __init__(self, folder: Path, cluster: Cluster, kafka: Kafka | None, launcher: Launcher) -> None:
        self.cluster, self.kafka, self.launcher = cluster, kafka, launcher
        settings = {
            "database_url": cluster.url(),
            "changes": "all",
            "log_format": "json",
            "log_level": "warning",
            "relay": False,
            "tracks": "follow",
            **dict.fromkeys(("ack_timeout", "liveness_interval", "liveness_window"), FAR),
        }
        if kafka is not None:
            settings |= {"kafka": kafka.servers, "topics_in": TOPIC_IN, "topic_out": TOPIC_OUT}
        self.steady = Serving(launcher, folder, "steady", settings=settings)
        self.service = Serving(launcher, folder, "service", settings=settings)
        self.pair = Serving(launcher, folder, "pair", "--workers", 2, settings=settings)
        self.services = [self.steady, self.service, self.pair]
        self.sweep = Program(launcher, folder, "sweep", "sweep", settings=settings)
        self.relay = Program(launcher, folder, "relay", "relay", settings=settings)
        self.consumer = Program(launcher, folder, "consumer", "consume", settings=settings)
        self.workers = [self.sweep, *((self.relay, self.consumer) if kafka else ())]

    def unread(self) -> int:
        """The number of messages that were written to Kafka and not taken in."""
        assert self.kafka is not None
        taken = self.cluster.sql(
            f"SELECT coalesce(sum(\"offset\" + 1), 0) FROM watermarks WHERE topic = '{TOPIC_IN}'"
        )
        return self.kafka.length(TOPIC_IN) - int(taken)

    def unsent(self) -> int:
        """The number of entries in the outbox."""
        return int(self.cluster.sql("SELECT count(*) FROM outbox"))


@contextmanager
def running(folder: Path, module: str = "app") -> Iterator[Servers]:
    """All servers, at work; `module` is imported by all commands before they start."""
    with clustered() as cluster, Launcher(module) as launcher, ExitStack() as stack:
        kafka = None
        if not Kafka.lacks():
            kafka = Kafka(folder)
            stack.callback(kafka.stop)
            kafka.start()
            for topic in (TOPIC_IN, TOPIC_OUT):
                kafka.create_topic(topic)
        cluster.primary.sql(f"CREATE DATABASE {DATABASE}")
        migrated = pqs("migrate", database_url=cluster.primary.url(DATABASE))
        assert migrated.returncode == 0, migrated.stderr
        cluster.sql(GRANTS)
        servers = Servers(folder, cluster, kafka, launcher)
        for program in (*servers.services, *servers.workers):
            stack.callback(program.stop)
            program.start()
        for service in servers.services:
            service.await_readiness()
        yield servers
