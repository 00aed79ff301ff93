"""Read access to a folder of tokens, whose shards are mapped when needed and let go again."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainers.config import Packing
from trainers.errors import DataError

INDEX = "index.json"
SCHEMA_VERSION = 2

_Rows = NDArray[Any]


class TokenSequences:
    """One part of a folder of tokens: sequences by number, source after source.

    Attributes:
        sequence_length: tokens in a sequence.
        vocab_size: every token is below it.
        packing: how documents were put into sequences, `concat` or `best_fit`.
        end_token: the token that parts documents.
        tokenizer: SHA-256 of the tokenizer's file.
        sizes: sequences of each source of the corpus.
        block: mean sequences of a shard, rounded up.
        targets_per_sequence: mean number of tokens that the causal objective predicts.
        text_tokens_per_sequence: mean number of tokens that are no end tokens.
    """

    def __init__(
        self,
        open_file: Callable[[str], Path],
        part: str,
        keep: int | None = None,
    ) -> None:
        """Read the index; shards are opened later.

        Args:
            open_file: brings a file of the folder to this machine and says where it is:
                `folder.joinpath` where it is here. May take its time and is called from several
                threads.
            part: what the names of its shards begin with.
            keep: most shards held open that were read, the least recently read are let go; those
                prefetched and not yet read come on top. None is all.

        Raises:
            DataError: the index is of another version.
        """
        index = json.loads(open_file(INDEX).read_text(encoding="utf-8"))
        if index["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{open_file(INDEX)} has schema_version {index['schema_version']}, and this "
                f"release reads {SCHEMA_VERSION}; pack the corpus into tokens again"
            )
        self.sequence_length: int = index["sequence_length"]
        self.vocab_size: int = index["vocab_size"]
        self.packing: Packing = index["packing"]
        self.end_token: int = index["end_token"]
        self.tokenizer: str = index["tokenizer"]
        self._dtype = np.dtype(index["dtype"])
        shards = [
            shard
            for shard in sorted(index["shards"], key=lambda shard: (shard["source"], shard["file"]))
            if shard["file"].startswith(f"{part}-") and shard["sequences"]
        ]
        self._files: list[str] = [shard["file"] for shard in shards]
        self._counts = np.array([shard["sequences"] for shard in shards], dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        sources = [shard["source"] for shard in shards]
        sizes = np.zeros(max(sources, default=-1) + 1, dtype=np.int64)
        np.add.at(sizes, sources, self._counts)
        self.sizes: list[int] = sizes.tolist()
        self.block = -(-len(self) // max(1, len(shards))) or 1
        self.targets_per_sequence: float = sum(s["targets"] for s in shards) / (len(self) or 1)
        text_tokens = sum(s["tokens"] - s["end_tokens"] for s in shards)
        self.text_tokens_per_sequence: float = text_tokens / (len(self) or 1)
        text_bytes = sum(s["text_bytes"] for s in shards)
        self.tokens_per_byte: float = sum(s["tokens"] for s in shards) / (text_bytes or 1)
        self._open_file = open_file
        self._keep = keep
        self._open: OrderedDict[int, _Rows] = OrderedDict()
        self._coming: dict[int, Future[_Rows]] = {}
        self._lock = Lock()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="shards")

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._files else 0

    def read(self, samples: ArrayLike) -> NDArray[np.int64]:
        """Sequences by number, shape (samples, sequence_length).

        Raises:
            IndexError: there is no such sequence.
            DataError: a shard does not hold what the index says.
        """
        numbers = np.asarray(samples, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"samples {numbers.min()} to {numbers.max()} of {len(self)}")
        shards = np.searchsorted(self._ends, numbers, side="right")
        found = np.empty((len(numbers), self.sequence_length), dtype=np.int64)
        for shard in np.unique(shards).tolist():
            mine = np.flatnonzero(shards == shard)
            rows = self._rows(shard)
            found[mine] = rows[numbers[mine] - (self._ends[shard] - len(rows))]
        return found

    def prefetch(self, ranges: Iterable[range]) -> None:
        """Begin to open the shards that hold ranges of samples, one by one, in the background.

        What fails is tried again when the shard is read.
        """
        wanted = [
            shard
            for samples in ranges
            for shard in range(
                int(np.searchsorted(self._ends, samples.start, side="right")),
                int(np.searchsorted(self._ends, samples.stop, side="left")) + 1,
            )
        ]
        with self._lock:
            # What was prefetched before is what training reads now.
            for shard, coming in list(self._coming.items()):
                if coming.done():
                    del self._coming[shard]
                    if not coming.exception():
                        self._hold(shard, coming.result())
            for shard in dict.fromkeys(wanted):
                if shard not in self._open and shard not in self._coming:
                    self._coming[shard] = self._background.submit(self._map, shard)

    def close(self) -> None:
        """Let all shards go; those still to be prefetched are not."""
        self._background.shutdown(cancel_futures=True)
        self._open.clear()
        self._coming.clear()

    def _rows(self, shard: int) -> _Rows:
        """The sequences of a shard, which is opened unless it is."""
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
            coming = self._coming.pop(shard, None)
        # What still waits behind other shards is opened here and now, what failed once more.
        is_there = coming and not coming.cancel() and coming.exception() is None
        rows = coming.result() if coming and is_there else self._map(shard)
        with self._lock:
            self._hold(shard, rows)
        return rows

    def _hold(self, shard: int, rows: _Rows) -> None:
        self._open[shard] = rows
        while self._keep is not None and len(self._open) > self._keep:
            self._open.popitem(last=False)

    def _map(self, shard: int) -> _Rows:
        path = self._open_file(self._files[shard])
        shape = (int(self._counts[shard]), self.sequence_length)
        expected = shape[0] * shape[1] * self._dtype.itemsize
        if path.stat().st_size != expected:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes where {INDEX} says {expected}; "
                "pack the corpus into tokens again"
            )
        return np.memmap(path, dtype=self._dtype, mode="r", shape=shape)
