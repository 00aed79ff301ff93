"""Which sample comes when: a function of (seed, position), never of the number of workers."""

import hashlib
from collections.abc import Iterable

_ROUNDS = 4


def sample_at(position: int, *, num_samples: int, seed: int) -> int:
    """The sample consumed at `position`, counted from the start of training over all epochs.

    Every epoch is another permutation of the samples. The permutation is a balanced Feistel
    network over the next even power of two, walked until it falls inside (Black & Rogaway 2002,
    "Ciphers with arbitrary finite domains"), so no index of the samples is ever held in memory.
    """
    epoch, offset = divmod(position, num_samples)
    half_bits = max(1, ((num_samples - 1).bit_length() + 1) // 2)
    while True:
        offset = _feistel(offset, half_bits, seed, epoch)
        if offset < num_samples:
            return offset


def chain(digest: str, samples: Iterable[int]) -> str:
    """A rolling hash over consumed sample numbers: equal hashes prove an equal order."""
    rolling = hashlib.sha256(bytes.fromhex(digest))
    for sample in samples:
        rolling.update(sample.to_bytes(8, "big"))
    return rolling.hexdigest()


def _feistel(value: int, half_bits: int, seed: int, epoch: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for number in range(_ROUNDS):
        message = f"{seed}:{epoch}:{number}:{right}".encode()
        mixed = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "big")
        left, right = right, left ^ (mixed & mask)
    return left << half_bits | right
