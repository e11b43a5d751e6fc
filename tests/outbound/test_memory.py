"""The bus in memory: its differences from a Kafka."""

from app.outbound.memory import MemoryBus


async def test_messages_without_a_key_take_turns() -> None:
    """Messages without a key go to the partitions in turn."""
    bus = MemoryBus(partitions=3)
    for _ in range(6):
        await bus.publish("topic", None, b"", {})
    assert [message.partition for message in bus.messages("topic")] == [0, 1, 2, 0, 1, 2]


async def test_only_the_latest_messages_are_kept() -> None:
    """A bus that no one reads keeps only its latest messages; offsets go on."""
    bus = MemoryBus(partitions=1, kept=2)
    for _ in range(5):
        await bus.publish("topic", b"key", b"", {})
    assert [message.offset for message in bus.messages("topic")] == [3, 4]


async def test_topics_are_apart() -> None:
    """Each topic has its own messages and offsets, and an unused topic has none."""
    bus = MemoryBus()
    await bus.publish("one", b"key", b"1", {})
    await bus.publish("two", b"key", b"2", {})
    assert [(message.value, message.offset) for message in bus.messages("two")] == [(b"2", 0)]
    assert bus.messages("three") == []
