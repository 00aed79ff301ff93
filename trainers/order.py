"""Which sample comes when: a function of (seed, epoch, position), never of the number of workers.

An epoch's samples stand source after source, cut into blocks of about one shard. The blocks come in
a keyed order, and a window of consecutive ones is mixed by a second keyed permutation: whoever
reads a window reads few shards, and no index of the samples is ever held in memory.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Offsets = NDArray[np.uint64]


class Order:
    """The order in which training consumes sequences, over all epochs.

    In an epoch, source s with n sequences and weight w gives c = max(1, round(w * n)) samples: the
    j-th of epoch e is its sequence (e * c + j) mod n. So the sequences of a source come equally
    often, give or take one, after any number of epochs.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], *, seed: int, block: int, window: int
    ) -> None:
        """Order the sequences of some sources, which are numbered source after source.

        Args:
            sizes: sequences of each source.
            weights: times a source's sequences come in one epoch; sources behind the last of
                `sizes` have no sequences.
            seed: of the order.
            block: consecutive samples that stay together up to mixing: the sequences of one shard.
            window: blocks that are mixed at a time.

        Raises:
            ValueError: a source has no weight, or no source has sequences.
        """
        if len(weights) < len(sizes):
            raise ValueError(f"{len(sizes)} sources have only {len(weights)} weights")
        self._sizes = list(sizes)
        self._counts = [
            max(1, round(weight * size)) if size else 0
            for size, weight in zip(sizes, weights, strict=False)
        ]
        self.epoch_size = sum(self._counts)
        if not self.epoch_size:
            raise ValueError("there are no sequences to put in an order")
        self._firsts = [sum(self._sizes[:source]) for source in range(len(self._sizes))]
        self._ends = np.cumsum(self._counts, dtype=np.int64)
        self._begins = self._ends - self._counts
        self._seed, self._block, self._span = seed, block, block * window

    def samples(self, positions: range) -> NDArray[np.int64]:
        """The samples consumed at consecutive positions, counted from the start of training."""
        parts, start = [np.empty(0, dtype=np.int64)], positions.start
        while start < positions.stop:
            window = self.window(start)
            stop = min(window.stop, positions.stop)
            parts.append(self._mixed(window, range(start, stop)))
            start = stop
        return np.concatenate(parts)

    def window(self, position: int) -> range:
        """The positions whose samples are mixed with that of `position`."""
        epoch, offset = divmod(position, self.epoch_size)
        start = position - offset % self._span
        return range(start, min(start + self._span, (epoch + 1) * self.epoch_size))

    def upcoming(self, position: int) -> list[range]:
        """The sample numbers that the window behind the one of `position` consists of."""
        window = self.window(self.window(position).stop)
        epoch, offset = divmod(window.start, self.epoch_size)
        places = np.arange(
            offset // self._block, -(-(offset + len(window)) // self._block), dtype=np.uint64
        )
        ranges = []
        for block in self._blocks(epoch, places).tolist():
            start = block * self._block
            stop = min(start + self._block, self.epoch_size)
            ranges += self._ranges(epoch, start, stop)
        return ranges

    def _mixed(self, window: range, positions: range) -> NDArray[np.int64]:
        """Samples of positions that lie in one window."""
        epoch, offset = divmod(window.start, self.epoch_size)
        first = positions.start - window.start
        inside = np.arange(first, first + len(positions), dtype=np.uint64)
        number = offset // self._span
        mixed = permuted(inside, len(window), self._key(epoch, f"window {number}")) + offset
        blocks = self._blocks(epoch, mixed // self._block)
        rotated = blocks * self._block + mixed % self._block
        standing = (rotated + self._rotation(epoch)) % self.epoch_size
        return self._sequences(epoch, standing.astype(np.int64))

    def _blocks(self, epoch: int, places: _Offsets) -> _Offsets:
        """The blocks that come at some places of the epoch; the incomplete one comes last."""
        full = self.epoch_size // self._block
        blocks = places.copy()
        is_full = places < full
        blocks[is_full] = permuted(places[is_full], full, self._key(epoch, "blocks"))
        return blocks

    def _rotation(self, epoch: int) -> int:
        """By how much blocks are shifted, so that each epoch has borders and a tail of its own."""
        digest = hashlib.blake2b(self._key(epoch, "rotation")).digest()
        return int.from_bytes(digest, "big") % self.epoch_size

    def _sequences(self, epoch: int, standing: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of sequences, from where they stand in the epoch before any permutation."""
        source = np.searchsorted(self._ends, standing, side="right")
        within = standing - self._begins[source] + self._starts(epoch)[source]
        numbers: NDArray[np.int64] = (
            within % np.array(self._sizes)[source] + np.array(self._firsts)[source]
        )
        return numbers

    def _starts(self, epoch: int) -> NDArray[np.int64]:
        """The sequence of each source that its first sample of the epoch is."""
        starts = [
            epoch * count % size if size else 0
            for count, size in zip(self._counts, self._sizes, strict=True)
        ]
        return np.array(starts, dtype=np.int64)

    def _ranges(self, epoch: int, start: int, stop: int) -> list[range]:
        """Numbers of sequences as ranges, for a stretch of the epoch's blocks."""
        ranges = []
        starts, ends = self._starts(epoch).tolist(), self._ends.tolist()
        for low, high in _wrapped(start + self._rotation(epoch), stop - start, self.epoch_size):
            for source, begin in enumerate(self._begins.tolist()):
                a, b = max(low, begin), min(high, ends[source])
                first, within = self._firsts[source], starts[source] + a - begin
                if a < b:
                    parts = _wrapped(within, b - a, self._sizes[source])
                    ranges += [range(first + part[0], first + part[1]) for part in parts]
        return ranges

    def _key(self, epoch: int, use: str) -> bytes:
        return f"{self._seed}:{epoch}:{use}".encode()


def permuted(offsets: _Offsets, size: int, key: bytes) -> _Offsets:
    """Where a keyed permutation of [0, size) takes some offsets; size is at most 2**62.

    A balanced Feistel network over the next even power of two, walked until it falls inside (Black
    & Rogaway 2002, "Ciphers with arbitrary finite domains"). Each round's function is the finaliser
    of SplitMix64 (Steele et al. 2014) under a key of its own.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    # As many rounds as one digest has keys: domains of a few elements need more than four.
    round_keys = np.frombuffer(hashlib.blake2b(key).digest(), dtype="<u8").astype(np.uint64)
    found = _feistel(offsets, half_bits, round_keys)
    outside = np.flatnonzero(found >= size)
    while len(outside):
        found[outside] = _feistel(found[outside], half_bits, round_keys)
        outside = outside[found[outside] >= size]
    return found


def chain(digest: str, samples: ArrayLike) -> str:
    """A rolling hash over consumed sample numbers: equal hashes prove an equal order."""
    rolling = hashlib.sha256(bytes.fromhex(digest))
    rolling.update(np.asarray(samples, dtype=">u8").tobytes())
    return rolling.hexdigest()


def _feistel(offsets: _Offsets, half_bits: int, round_keys: _Offsets) -> _Offsets:
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = offsets >> half, offsets & mask
    for round_key in round_keys:
        mixed = right + round_key
        mixed = (mixed ^ (mixed >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> 27)) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> 31
        left, right = right, left ^ (mixed & mask)
    return left << half | right


def _wrapped(start: int, length: int, size: int) -> list[tuple[int, int]]:
    """A stretch of a circle as begin and end of at most two straight ones."""
    if length >= size:
        return [(0, size)]
    start %= size
    stop = start + length
    return [(start, stop)] if stop <= size else [(start, size), (0, stop - size)]
