"""Random streams by name: the same in every process, and independent of each other."""

import hashlib
import random


def stream_of(*key: object) -> random.Random:
    """The random stream of `key`, whose parts count by their text."""
    return random.Random(_text(key))  # seeded by SHA-512 of the text, never by `hash()`


def seed_of(*key: object) -> int:
    """A 63-bit number that follows from `key`: the seed of a text that several requests share."""
    return int.from_bytes(hashlib.blake2b(_text(key).encode(), digest_size=8).digest()) >> 1


def _text(key: tuple[object, ...]) -> str:
    return ":".join(str(part) for part in key)
