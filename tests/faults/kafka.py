"""An Apache Kafka of one node for a campaign, which is killed and started again with its data."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from tests.edge.programs import free_port

POM = Path(__file__).resolve().parents[1] / "kafka" / "pom.xml"
PATIENCE = 90.0  # seconds
POLL = 0.05  # seconds
FEWEST, MOST = 4, 24  # partitions


class Kafka:
    """The broker: real, or an error that says what is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, controller = free_port(), free_port()
        self.servers = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        path = folder / "classpath"
        command = ["mvn", "--batch-mode", "--quiet", "--file", str(POM), "dependency:build-classpath"]
        subprocess.run([*command, f"-Dmdep.outputFile={path}"], check=True, timeout=300, capture_output=True)
        self._java = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", path.read_text()]
        self._properties = folder / "server.properties"
        self._properties.write_text(
            "process.roles=broker,controller\nnode.id=1\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\n"
            f"listeners=PLAINTEXT://{self.servers},CONTROLLER://127.0.0.1:{controller}\n"
            f"advertised.listeners=PLAINTEXT://{self.servers}\ncontroller.listener.names=CONTROLLER\n"
            f"log.dirs={folder}/log\nnum.partitions={FEWEST}\nfile.delete.delay.ms=100\n"
            "offsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n"
            "transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n"
            "share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n"
            "group.initial.rebalance.delay.ms=0\n"
            # Else a killed broker that is back waits until it is forgotten.
            "broker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=400\n"
        )
        tool = [*self._java, "kafka.tools.StorageTool"]
        made = subprocess.run([*tool, "random-uuid"], check=True, capture_output=True, text=True, timeout=PATIENCE)
        cluster = ["--cluster-id", made.stdout.split()[-1], "--config", str(self._properties)]
        subprocess.run([*tool, "format", *cluster], check=True, capture_output=True, timeout=PATIENCE)

    @staticmethod
    def lacks() -> str:
        """What is missing to run one, if anything."""
        return ", ".join(name for name in ("java", "mvn") if shutil.which(name) is None)

    def start(self) -> None:
        """Start it at the same address, and wait until it answers."""
        with (self._folder / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + PATIENCE
        while True:
            assert self._process.poll() is None, (self._folder / "kafka.log").read_text()[-4000:]
            assert time.monotonic() < end, "Kafka does not listen"
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            time.sleep(POLL)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def pause(self, seconds: float) -> None:
        """Stop it for a while."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            self.kill()

    def create_topic(self, name: str, partitions: int = FEWEST) -> None:
        """Create a topic."""
        admin = self._admin()
        [made] = admin.create_topics([NewTopic(name, partitions, 1)]).values()
        made.result(PATIENCE)

    def length(self, topic: str) -> int:
        """The number of messages in a topic, from its first offset."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "operator", "log_level": 0})
        try:
            partitions = consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
            places = [TopicPartition(topic, number) for number in partitions]
            return sum(consumer.get_watermark_offsets(place, timeout=PATIENCE)[1] for place in places)
        finally:
            consumer.close()

    def remake(self, topic: str) -> None:
        """Delete a topic, and create it again."""
        admin = self._admin()
        [deleted] = admin.delete_topics([topic]).values()
        deleted.result(PATIENCE)
        end = time.monotonic() + PATIENCE
        while topic in admin.list_topics(timeout=PATIENCE).topics:
            assert time.monotonic() < end
            time.sleep(POLL)
        self.create_topic(topic)

    def add_partition(self, topic: str) -> int:
        """Give a topic one more partition, up to the most; returns the number of its partitions."""
        admin = self._admin()
        now = len(admin.list_topics(topic, timeout=PATIENCE).topics[topic].partitions)
        if now < MOST:
            [added] = admin.create_partitions([NewPartitions(topic, now + 1)]).values()
            added.result(PATIENCE)
        return min(now + 1, MOST)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
