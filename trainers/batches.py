"""Token sequences and their order to batches; the whole state is one number and its proof."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers import order, segments
from trainers.config import Packing
from trainers.pretrain_work import micro_batch_size
from trainers.segments import Batch, Masking
from trainers.sequences import TokenSequences

NOTHING_CONSUMED = "00" * 32


@dataclass(frozen=True)
class Cursor:
    """How far training has read."""

    samples: int = 0
    """Sequences consumed by all workers together."""

    digest: str = NOTHING_CONSUMED
    """Rolling hash of their numbers, in order."""


class GlobalBatches:
    """One rank's part of each global batch, in micro-batches."""

    def __init__(
        self,
        sequences: TokenSequences,
        *,
        weights: Sequence[float],
        window: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        micro_batch: int | None,
        seed: int,
        masking: Masking | None,
    ) -> None:
        """Divide the global batches among the ranks.

        Args:
            sequences: all there are.
            weights: times each source's sequences come in one epoch.
            window: shards whose sequences are mixed at a time.
            global_batch_size: sequences in one optimizer step over all ranks.
            rank: whose part is read.
            world_size: number of ranks.
            micro_batch: most sequences in one forward pass; None is the rank's whole part.
            seed: of the order and the masks.
            masking: of the masked objective; None is the causal one.

        Raises:
            ValueError: the global batch cannot be shared evenly.
        """
        if global_batch_size % world_size:
            raise ValueError(
                f"a global batch of {global_batch_size} sequences cannot be shared evenly by "
                f"{world_size} workers; change cluster.pretrain.workers or "
                "pretrain.global_batch_tokens"
            )
        self._sequences, self._masking, self._seed = sequences, masking, seed
        self._order = order.Order(
            sequences.sizes, weights, seed=seed, block=sequences.block, window=window
        )
        self._window = range(0)
        self._global_batch_size = global_batch_size
        local_batch = global_batch_size // world_size
        self._mine = slice(rank * local_batch, (rank + 1) * local_batch)
        self.micro_batch_size = micro_batch_size(local_batch, micro_batch)
        self.micro_batches = local_batch // self.micro_batch_size

    def read(self, cursor: Cursor) -> tuple[list[Batch], Cursor]:
        """This rank's micro-batches at `cursor`, and the cursor behind the whole global batch."""
        positions = range(cursor.samples, cursor.samples + self._global_batch_size)
        samples = self._order.samples(positions)
        mine, my_positions = samples[self._mine], positions[self._mine]
        ids = torch.from_numpy(self._sequences.read(mine))
        self._prefetch(positions[-1])
        batch = to_batch(
            ids,
            my_positions,
            packing=self._sequences.packing,
            end_token=self._sequences.end_token,
            masking=self._masking,
            seed=self._seed,
        )
        micro = [
            {name: tensor[start : start + self.micro_batch_size] for name, tensor in batch.items()}
            for start in range(0, len(mine), self.micro_batch_size)
        ]
        return micro, Cursor(positions.stop, order.chain(cursor.digest, samples))

    def _prefetch(self, position: int) -> None:
        """On entering a window, have the shards of the one behind it opened."""
        if position not in self._window:
            self._window = self._order.window(position)
            self._sequences.prefetch(self._order.upcoming(position))


class Prefetcher:
    """Reads the next global batch in the background while the current one is trained."""

    def __init__(self, batches: GlobalBatches, cursor: Cursor) -> None:
        self._batches = batches
        self._background = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming = self._background.submit(batches.read, cursor)
        self._wait_s = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds that callers of `next` have waited so far."""
        return self._wait_s

    def next(self) -> tuple[list[Batch], Cursor]:
        """What `GlobalBatches.read` gives at the cursor behind the last global batch.

        Raises whatever reading raised.
        """
        started = time.monotonic()
        try:
            micro_batches, cursor = self._coming.result()
        finally:
            self._wait_s += time.monotonic() - started
        self._coming = self._background.submit(self._batches.read, cursor)
        return micro_batches, cursor

    def close(self) -> None:
        """Read no more. Waits for the global batch under way."""
        self._background.shutdown(cancel_futures=True)


def to_batch(
    ids: Tensor,
    positions: range,
    *,
    packing: Packing,
    end_token: int,
    masking: Masking | None,
    seed: int,
) -> Batch:
    """Training sequences as a model's inputs and labels.

    Args:
        ids: token ids, shape (sequences, length).
        positions: of the sequences in the order of training: masks follow from them.
        packing: how documents share a sequence.
        end_token: of the documents.
        masking: of the masked objective; None is the causal one.
        seed: of training.
    """
    if packing == "best_fit":
        if masking is None:
            return segments.causal_batch(ids, end_token)
        return segments.masked_batch(ids, positions, masking, seed, end_token)
    if masking is None:
        return {"input_ids": ids, "labels": ids}
    everything = torch.ones_like(ids, dtype=torch.bool)
    return segments.hide_tokens(ids, everything, positions, masking, seed)
