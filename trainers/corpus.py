"""A corpus in shards: read and cleaned apart, each text once in all, a part kept for validation.

Three passes, each a pure function of one piece of work, so that shards can be computed anywhere and
at once: `clean_shard` reads the sources, `find_duplicates` compares the keys of one slice of all
documents, `keep_shard` writes what is left. No pass holds more keys in
memory than those of one shard or one slice.
"""

import fnmatch
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from trainers import documents
from trainers.cleaning import KEY_BYTES, Cleaner, HeldOut
from trainers.config import CleaningConfig
from trainers.errors import DataError
from trainers.pieces import Shard

logger = logging.getLogger(__name__)

TRAIN, VALIDATION = "train", "validation"
PARTS = (TRAIN, VALIDATION)

KEYS_AT_ONCE = 1 << 20
"""Keys that `find_duplicates` compares in memory."""

# Arrow's own allocator keeps what it has freed: a worker would grow by half.
pa.set_memory_pool(pa.system_memory_pool())

_TEXTS, _KEYS, _DUPLICATES = "texts.parquet", "keys.npy", "duplicates.npy"
_SCHEMA = pa.schema([("text", pa.string())])
_SOURCE = b"pretune.source"
_ROW_GROUP_BYTES = 4 << 20
_ROWS_AT_ONCE = 256
_MOST_EXAMPLES = 5

# A document's key in two halves, and its row in its shard.
_KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4")])
_PLACE = np.dtype([("shard", "<u4"), ("row", "<u4")])


@dataclass(frozen=True)
class CleanWork:
    """What `clean_shard` needs, in a form that travels to another process."""

    shard: Shard
    clean: CleaningConfig
    skips_malformed: bool
    held_out: Path
    """What `cleaning.write_held_out` wrote."""
    root: Path | None
    """Folder that the shard's files are in, where that is not the same on all nodes."""
    directory: Path


@dataclass(frozen=True)
class CleanedShard:
    """What was read and what became of it, in documents."""

    kept: int = 0
    short: int = 0
    held_out: int = 0
    contaminated: int = 0
    malformed: int = 0
    """Lines, rows and files that could not be read."""
    examples: list[str] = field(default_factory=list)
    """Of what was malformed, the first few."""


def clean_shard(work: CleanWork) -> CleanedShard:
    """Read a shard of the sources and write its clean documents and their keys.

    Raises:
        DataError: something cannot be read, and the user did not choose to skip that.
    """
    cleaner = Cleaner(work.clean, HeldOut.load(work.held_out))
    counts = dict.fromkeys(("kept", "short", "held_out", "contaminated", "malformed"), 0)
    examples: list[str] = []

    def skip(message: str) -> None:
        logger.warning("skipped: %s", message)
        counts["malformed"] += 1
        if len(examples) < _MOST_EXAMPLES:
            examples.append(message)

    keys, shard = bytearray(), work.shard.below(work.root) if work.root else work.shard
    with _TextWriter(work.directory / _TEXTS, work.shard.number) as writer:
        for text in documents.read(shard, skip if work.skips_malformed else None):
            cleaned, key, verdict = cleaner.clean(text)
            counts[verdict] += 1
            if verdict == "kept":
                writer.add(cleaned)
                keys += key
    keys_of(work.directory).mkdir(exist_ok=True)
    np.save(keys_of(work.directory) / _KEYS, _sorted_keys(bytes(keys)))
    return CleanedShard(**counts, examples=examples)


@dataclass(frozen=True)
class DuplicatesWork:
    """One slice of all documents, by their keys."""

    slice: int
    slices: int
    keys: tuple[Path, ...]
    """`keys_of` all shards, in order: on an object store only these are fetched."""
    directory: Path


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found, in documents."""

    duplicates: int


def find_duplicates(work: DuplicatesWork) -> Duplicates:
    """Write the places of all documents of a slice that have an equal one before them."""
    keys, shards = [], []
    for number, directory in enumerate(work.keys):
        found = _slice_of(np.load(directory / _KEYS, mmap_mode="r"), work.slice, work.slices)
        keys.append(found)
        shards.append(np.full(len(found), number, dtype=np.uint32))
    key, shard = np.concatenate(keys), np.concatenate(shards)
    order = np.lexsort((key["row"], shard, key["low"], key["high"]))
    key, shard = key[order], shard[order]
    repeats = (key["high"][1:] == key["high"][:-1]) & (key["low"][1:] == key["low"][:-1])
    places = np.empty(int(repeats.sum()), dtype=_PLACE)
    places["shard"], places["row"] = shard[1:][repeats], key["row"][1:][repeats]
    places.sort(order=("shard", "row"))
    np.save(work.directory / _DUPLICATES, places)
    return Duplicates(len(places))


@dataclass(frozen=True)
class KeepWork:
    """What `keep_shard` needs."""

    number: int
    cleaned: Path
    duplicates: tuple[Path, ...]
    """Of all slices."""
    validation_fraction: float
    shard_bytes: int
    """Text in one file: one that could not be cut when it was read is cut here."""
    directory: Path


@dataclass(frozen=True)
class KeptShard:
    """What is left of a shard, in documents."""

    train: int
    validation: int
    files: list[str]


def keep_shard(work: KeepWork) -> KeptShard:
    """Write `{train,validation}-000.parquet` and so on, without duplicates."""
    keys = np.load(keys_of(work.cleaned) / _KEYS, mmap_mode="r")
    part = np.zeros(len(keys), dtype=np.int8)  # PARTS by number; -1 is none
    # Duplicates share a key, so no two of them would ever be in different parts.
    part[keys["row"]] = keys["high"] < work.validation_fraction * 2.0**64
    for directory in work.duplicates:
        places = np.load(directory / _DUPLICATES, mmap_mode="r")
        first, last = np.searchsorted(places["shard"], [work.number, work.number + 1])
        part[places["row"][first:last]] = -1
    files: list[str] = []
    for number, name in enumerate(PARTS):
        if (part == number).any():
            files += _write_chosen(work, name, part == number)
    return KeptShard(int((part == 0).sum()), int((part == 1).sum()), files)


def keys_of(cleaned: Path) -> Path:
    """The folder of a cleaned shard's keys alone."""
    return cleaned / "keys"


def slices_for(num_documents: int) -> int:
    """Slices in which so many documents are compared."""
    return max(1, -(-num_documents // KEYS_AT_ONCE))


def facts(
    cleaned: Sequence[CleanedShard],
    found: Sequence[Duplicates],
    kept: Sequence[KeptShard],
    *,
    sources: Sequence[str],
) -> dict[str, Any]:
    """What became of all documents that were read, by reason.

    Raises:
        DataError: none is left to train on.
    """
    counts = {
        "train": sum(shard.train for shard in kept),
        "validation": sum(shard.validation for shard in kept),
        "duplicates": sum(slice_.duplicates for slice_ in found),
        "held_out": sum(shard.held_out for shard in cleaned),
        "contaminated": sum(shard.contaminated for shard in cleaned),
        "short": sum(shard.short for shard in cleaned),
        "malformed": sum(shard.malformed for shard in cleaned),
    }
    if not counts[TRAIN]:
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        raise DataError(
            f"the corpus is empty: of the documents of {', '.join(sources)} none was left for "
            f"training ({told or 'there were none'})"
        )
    examples = [example for shard in cleaned for example in shard.examples]
    return counts | {"malformed_examples": examples[:_MOST_EXAMPLES]}


def shards(directory: Path, part: str) -> list[Path]:
    """The shard files of `train` or `validation`, in order."""
    names = names_of((path.name for path in directory.iterdir()), part)
    return [directory / name for name in names]


def names_of(files: Iterable[str], part: str) -> list[str]:
    """Those of the files in a corpus' folder that are shards of a part, in order."""
    return sorted(fnmatch.filter(files, f"{part}-*.parquet"))


def read(shard: Path) -> Iterator[str]:
    """The documents of one shard."""
    for batch in _batches(shard):
        yield from batch.to_pylist()


def text_bytes(shard: Path) -> int:
    """Bytes of the documents of one shard, without reading them."""
    metadata = pyarrow.parquet.read_metadata(shard)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(int(group.total_byte_size) for group in groups)


def source_of(shard: Path) -> int:
    """Which of the corpus' sources a shard comes from; 0 in a corpus made elsewhere."""
    metadata = pyarrow.parquet.read_schema(shard).metadata or {}
    return int(metadata.get(_SOURCE, b"0"))


def _write_chosen(work: KeepWork, name: str, chosen: NDArray[np.bool_]) -> list[str]:
    """Write those texts of a cleaned shard; the names of the files."""
    texts, row = work.cleaned / _TEXTS, 0
    files: list[str] = []
    source = source_of(texts)
    writer: _TextWriter | None = None
    for batch in _batches(texts):
        mine = batch.filter(pa.array(chosen[row : row + len(batch)]))
        row += len(batch)
        for text in mine.to_pylist():
            if writer is None:
                files.append(f"{name}-{len(files):03d}.parquet")
                writer = _TextWriter(work.directory / files[-1], source)
            writer.add(text)
            if writer.written >= work.shard_bytes:
                writer.close()
                writer = None
    if writer is not None:
        writer.close()
    return files


def _batches(shard: Path) -> Iterator[Any]:
    # Without the buffer of whole row groups: memory stays flat whoever wrote the file.
    file = pyarrow.parquet.ParquetFile(shard, pre_buffer=False)
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=["text"]):
        yield batch.column("text")


def _sorted_keys(keys: bytes) -> NDArray[Any]:
    halves = np.frombuffer(keys, dtype=">u8").reshape(-1, KEY_BYTES // 8)
    found = np.empty(len(halves), dtype=_KEY)
    found["high"], found["low"] = halves[:, 0], halves[:, 1]
    found["row"] = np.arange(len(halves))
    return found[np.lexsort((found["low"], found["high"]))]


def _slice_of(keys: NDArray[Any], number: int, count: int) -> NDArray[Any]:
    """The keys whose high half is in one of `count` equal ranges; sorted keys only."""
    borders = [2**64 * n // count for n in (number, number + 1)]
    first = int(np.searchsorted(keys["high"], np.uint64(borders[0])))
    if borders[1] == 2**64:
        return np.array(keys[first:])
    return np.array(keys[first : int(np.searchsorted(keys["high"], np.uint64(borders[1])))])


class _TextWriter:
    """A Parquet file of texts in row groups of bounded size."""

    def __init__(self, path: Path, source: int) -> None:
        schema = _SCHEMA.with_metadata({_SOURCE: str(source).encode()})
        self._schema = schema
        self._writer = pyarrow.parquet.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=False
        )
        self._texts: list[str] = []
        self._size = 0
        self.written = 0
        """Characters taken."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def add(self, text: str) -> None:
        """Take one document."""
        self._texts.append(text)
        self._size += len(text)
        self.written += len(text)
        if self._size >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._texts:
            self._writer.write_table(pa.table({"text": self._texts}, schema=self._schema))
        self._texts, self._size = [], 0
