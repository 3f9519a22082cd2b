"""Random numbers and the order of samples as pure functions of their arguments: no state but one integer.

Any position of an order is found in constant time, so that resume costs nothing and does not depend on the number of
ranks, workers or restarts. Values are the same on every machine: orders and draws of runs on disk depend on them.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 4


def place(seed: int, position: int, size: int) -> tuple[int, int]:
    """(epoch, index) of the sample at a position of an endless shuffled stream over `size` samples.

    Each epoch is a permutation of its own: every sample exactly once.
    """
    if size < 1:
        raise ValueError(f"cannot shuffle {size} samples")
    epoch, offset = divmod(position, size)
    return epoch, permute(offset, size, seed, epoch)


def permute(value: int, size: int, seed: int, epoch: int) -> int:
    """A pseudo-random permutation of range(size): a Feistel network over the next even number of bits.

    Values outside the range are permuted again until they fall into it (cycle walking), at most 4 times on
    average.

    >>> sorted(permute(value, 10, seed=0, epoch=3) for value in range(10)) == list(range(10))
    True
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = value >> half, value & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (draw(seed, epoch, turn, right) & mask)
        value = left << half | right
        if value < size:
            return value


def draw(*parts: int | str) -> int:
    """64 random bits from the parts alone: the source of every choice that a sample needs."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(seed: int, key: str, purpose: str, count: int = 1) -> np.ndarray:
    """`count` numbers in [0, 1), float64, from the arguments alone: the engines' only source of chance."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: 64 well-mixed bits of each value. Wraps around, as meant."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def mixed(*parts: int) -> int:
    """64 bits from integers."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = mix(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return int(state[0])


def permute_array(values: np.ndarray, size: int, key: int) -> np.ndarray:
    """A pseudo-random permutation of range(size), applied to each value: a Feistel network with cycle walking.

    >>> sorted(permute_array(np.arange(10), 10, key=7).tolist()) == list(range(10))
    True
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(mixed(key, turn)) for turn in range(_ROUNDS)]
    out = values.astype(np.uint64)
    left_over = np.arange(len(out))
    while len(left_over):
        walking = out[left_over]
        left, right = walking >> half, walking & mask
        for turn in keys:
            left, right = right, left ^ (mix(right ^ turn) & mask)
        walking = left << half | right
        out[left_over] = walking
        left_over = left_over[walking >= size]
    return out.astype(np.int64)
