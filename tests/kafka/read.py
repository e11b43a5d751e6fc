"""Print the first messages of a topic, one a line, and wait for missing ones.

    python tests/kafka/read.py TOPIC COUNT [SERVERS]

SERVERS is 127.0.0.1:9092 by default. No offset is committed: the same call prints the same messages again.
"""

import sys
import uuid

from confluent_kafka import Consumer

WAIT = 60  # seconds for the next message; then it gives up with status 1


def read(topic: str, count: int, servers: str) -> None:
    """Print the first `count` messages of the topic."""
    settings = {"bootstrap.servers": servers, "group.id": f"read-{uuid.uuid4()}", "auto.offset.reset": "earliest"}
    consumer = Consumer(settings | {"enable.auto.commit": False})
    try:
        consumer.subscribe([topic])
        for _ in range(count):
            message = consumer.poll(WAIT)
            if message is None or message.error() is not None:
                sys.exit(f"no message came within {WAIT} s" if message is None else str(message.error()))
            sys.stdout.write((message.value() or b"").decode() + "\n")
    finally:
        consumer.close()


if __name__ == "__main__":
    if len(sys.argv) not in {3, 4}:
        sys.exit(__doc__)
    read(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) == 4 else "127.0.0.1:9092")
