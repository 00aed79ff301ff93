"""Documents to fixed-length training sequences on disk, two bytes a token where the ids allow.

A folder of tokens holds `{train,validation}-00000.bin`, each a row-major array of shape
(sequences, sequence_length), and `index.json`, which says how to read them.
"""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainers import corpus, packing
from trainers.config import Packing
from trainers.errors import DataError
from trainers.sequences import INDEX, SCHEMA_VERSION
from trainers.tokenizer import digest, parts, plain

_BATCH_BYTES = 1 << 18
_PART_BYTES = 1 << 16  # the library needs some 500 times this for one text
_BATCH_ROWS = 64


@dataclass(frozen=True)
class PackedShard:
    """One file of sequences and what went into it."""

    file: str
    source: int
    """Number of the corpus' source."""
    sequences: int
    documents: int
    tokens: int
    """With the end tokens that packing adds, before anything is dropped or filled."""
    end_tokens: int
    """Of these, the end tokens."""
    padding: int
    dropped_tokens: int
    """Of the last, incomplete sequence."""
    split_documents: int
    """Documents that are not whole in one sequence."""
    text_bytes: int
    """Of the documents in UTF-8."""
    targets: int
    """Next-token predictions that count in the loss."""
    tokenizer: str
    """Digest of the tokenizer."""


@dataclass(frozen=True)
class ShardWork:
    """What `pack_shard` needs, in a form that travels to another process."""

    shard: Path
    tokenizer: Path
    directory: Path
    sequence_length: int
    packing: Packing
    source: int
    """Number of the corpus' source the shard comes from."""


def pack_shard(work: ShardWork) -> PackedShard:
    """Tokenise one corpus shard and write its sequences.

    An end token that the tokenizer makes of a document's text is left out, so that those which
    packing adds are the only ones. Needs neither torch nor transformers, and 2 to 6 bytes of
    memory a token beside the longest document.

    Raises:
        DataError: the tokenizer cannot be used.
    """
    # One shard is one core's work: rayon's threads in each process would only get in their way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    own = digest(work.tokenizer)
    tokenizer, end = _loaded(work.tokenizer, own)
    width = _width(tokenizer.get_vocab_size())
    ids = array(np.dtype(width).char)
    owners, counts, text_bytes = array("q"), array("q"), 0
    for numbers, texts in _batches(_documents(work.shard)):
        text_bytes += sum(len(text.encode()) for text in texts)
        found, sizes = encode(tokenizer, end, texts, width)
        ids.frombytes(found.tobytes())
        owners.extend(numbers)
        counts.frombytes(sizes.tobytes())
    lengths = np.zeros(owners[-1] + 1 if owners else 0, dtype=np.int64)
    np.add.at(lengths, np.frombuffer(owners, np.int64), np.frombuffer(counts, np.int64))
    packed = _PACKINGS[work.packing](np.frombuffer(ids, width), lengths, work.sequence_length, end)
    file = f"{work.shard.stem}.bin"
    packed.sequences.tofile(work.directory / file)
    return PackedShard(
        file=file,
        source=work.source,
        sequences=len(packed.sequences),
        documents=len(lengths),
        tokens=packed.tokens,
        end_tokens=packed.end_tokens,
        padding=packed.padding,
        dropped_tokens=packed.dropped_tokens,
        split_documents=packed.split_documents,
        text_bytes=text_bytes,
        targets=packed.targets,
        tokenizer=own,
    )


def write_index(
    directory: Path,
    shards: Sequence[PackedShard],
    *,
    sequence_length: int,
    vocab_size: int,
    packing: Packing,
    end_token: int,
    tokenizer: str,
) -> dict[str, Any]:
    """Describe the packed shards; `tokenizer` is the digest of the one they belong to.

    Raises:
        DataError: a shard was packed with another tokenizer, or there is no full training sequence.
    """
    for shard in shards:
        if shard.tokenizer != tokenizer:
            raise DataError(
                f"{shard.file} was packed with tokenizer {shard.tokenizer[:12]}, but the corpus' "
                f"is {tokenizer[:12]}: their ids mean different things; pack the corpus anew"
            )
    if not any(s.sequences for s in shards if s.file.startswith(corpus.TRAIN)):
        raise DataError(
            f"the corpus has {sum(s.tokens for s in shards)} tokens, less than one training "
            f"sequence of {sequence_length}; add text or lower pretrain.sequence_length"
        )
    index = {
        "schema_version": SCHEMA_VERSION,
        "sequence_length": sequence_length,
        "vocab_size": vocab_size,
        "dtype": np.dtype(_width(vocab_size)).name,
        "packing": packing,
        "end_token": end_token,
        "tokenizer": tokenizer,
        "shards": [_entry(shard) for shard in shards],
    }
    (directory / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return index


def facts(shards: Sequence[PackedShard]) -> dict[str, Any]:
    """What became of the documents, over all shards."""
    names = ("sequences", "documents", "split_documents", "tokens", "dropped_tokens", "padding")
    counts = {name: sum(getattr(shard, name) for shard in shards) for name in names}
    text_bytes = sum(shard.text_bytes for shard in shards)
    filled = counts["tokens"] - counts["dropped_tokens"] + counts["padding"]
    return counts | {
        "padding_share": round(counts["padding"] / max(1, filled), 6),
        "tokens_per_byte": round(counts["tokens"] / max(1, text_bytes), 4),
    }


@lru_cache(maxsize=1)
def _loaded(directory: Path, digest: str) -> tuple[Tokenizer, int]:  # noqa: ARG001 -- of the key
    """One tokenizer a process: each that has encoded leaves megabytes behind when it goes."""
    return plain(directory)


_PACKINGS = {"concat": packing.concat, "best_fit": packing.best_fit}


def _entry(shard: PackedShard) -> dict[str, Any]:
    entry = asdict(shard)
    del entry["tokenizer"]  # the same for all; it stands at the top
    return entry


def _width(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.uint32


def _documents(shard: Path) -> Iterator[memoryview]:
    """The documents of a shard in UTF-8, in Arrow's memory: strings can take four times as much."""
    file = pyarrow.parquet.ParquetFile(shard)
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["text"]):
        column = batch.column("text").cast(pa.string())  # a corpus made elsewhere may have others
        _, offsets, data = column.buffers()
        bounds = np.frombuffer(offsets, np.int32)[column.offset :][: len(column) + 1].tolist()
        texts = memoryview(data or b"")
        for start, stop in pairwise(bounds):
            yield texts[start:stop]


def _batches(documents: Iterable[memoryview]) -> Iterator[tuple[list[int], list[str]]]:
    """Numbers of documents, and parts of their texts, of some `_BATCH_BYTES` together."""
    numbers: list[int] = []
    texts: list[str] = []
    size = 0
    for number, document in enumerate(documents):
        for part in parts(document, _PART_BYTES):
            numbers.append(number)
            texts.append(part)
            size += len(part)
            if size >= _BATCH_BYTES:
                yield numbers, texts
                numbers, texts, size = [], [], 0
    if texts:
        yield numbers, texts


def encode(
    tokenizer: Tokenizer, end: int, texts: list[str], width: type[np.uint16] | type[np.uint32]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids of all texts in a row without `end`, and how many each text has."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    sizes = np.array([len(encoding) for encoding in encoded], dtype=np.int64)
    flat = chain.from_iterable(encoding.ids for encoding in encoded)
    ids = np.fromiter(flat, dtype=width, count=int(sizes.sum()))
    is_end = ids == end
    if is_end.any():  # of a text that spells it, or of an unknown word where that is the same id
        text = np.repeat(np.arange(len(texts)), sizes)
        sizes -= np.bincount(text[is_end], minlength=len(texts))
        ids = ids[~is_end]
    return ids, sizes
