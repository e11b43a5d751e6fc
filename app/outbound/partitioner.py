"""Kafka's default partitioner: it maps a key to a partition of a topic."""

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_SHIFT = 24  # bits
_MASK = 0xFFFF_FFFF


def partition_of(key: bytes, partitions: int) -> int:
    """The partition, from 0, that Kafka's Java client and `murmur2_random` choose for `key` among `partitions`."""
    return (murmur2(key) & 0x7FFF_FFFF) % partitions


def murmur2(data: bytes) -> int:
    """The unsigned 32-bit MurmurHash2 (Austin Appleby), little-endian, with Kafka's seed."""
    whole = len(data) & ~3
    hashed = _SEED ^ len(data)
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * _MULTIPLIER & _MASK
        word = (word ^ word >> _SHIFT) * _MULTIPLIER & _MASK
        hashed = hashed * _MULTIPLIER & _MASK ^ word
    if whole < len(data):
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _MASK
    hashed = (hashed ^ hashed >> 13) * _MULTIPLIER & _MASK
    return hashed ^ hashed >> 15
