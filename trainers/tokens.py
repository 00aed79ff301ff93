"""Documents to fixed-length training sequences on disk, two bytes a token where the ids allow.

A folder of tokens holds `{train,validation}-00000.bin`, each a row-major array of shape
(sequences, sequence_length), and `index.json`, which says how to read them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers import corpus, tokenizer
from trainers.errors import DataError

INDEX = "index.json"

_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class PackedShard:
    """One file of sequences and what went into it."""

    file: str
    sequences: int
    documents: int
    tokens: int
    dropped_tokens: int
    """Of the last, incomplete sequence."""


@dataclass(frozen=True)
class ShardWork:
    """What `pack_shard` needs, in a form that travels to another process."""

    shard: Path
    tokenizer: Path
    directory: Path
    sequence_length: int


def pack_shard(work: ShardWork) -> PackedShard:
    """Tokenise one corpus shard; documents follow one another, each closed by the end token."""
    loaded = tokenizer.load(work.tokenizer)
    end = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
    pieces: list[NDArray[np.int64]] = []
    documents = 0
    for texts in _chunks(corpus.read(work.shard), _TEXTS_AT_ONCE):
        documents += len(texts)
        encoded = loaded(texts, add_special_tokens=False, verbose=False)["input_ids"]
        pieces.extend(np.asarray([*ids, end], dtype=np.int64) for ids in encoded)
    stream = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
    sequences = len(stream) // work.sequence_length
    used = sequences * work.sequence_length
    file = f"{work.shard.stem}.bin"
    stream[:used].astype(_width(len(loaded))).tofile(work.directory / file)
    return PackedShard(file, sequences, documents, len(stream), len(stream) - used)


def write_index(
    directory: Path, shards: Sequence[PackedShard], *, sequence_length: int, vocab_size: int
) -> dict[str, Any]:
    """Describe the packed shards.

    Raises:
        DataError: there is no full training sequence.
    """
    index = {
        "schema_version": 1,
        "sequence_length": sequence_length,
        "vocab_size": vocab_size,
        "dtype": np.dtype(_width(vocab_size)).name,
        "shards": [asdict(shard) for shard in shards],
    }
    if not any(s.sequences for s in shards if s.file.startswith(corpus.TRAIN)):
        raise DataError(
            f"the corpus has {sum(s.tokens for s in shards)} tokens, less than one training "
            f"sequence of {sequence_length}; add text or lower pretrain.sequence_length"
        )
    (directory / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return index


def _width(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.uint32


def _chunks(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
