"""Folders of tokens whose sequences tell their own number."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 4


def write(
    directory: Path,
    shards: Sequence[tuple[int, int]],
    *,
    part: str = "train",
    length: int = LENGTH,
    **changes: Any,
) -> Path:
    """Shards given by source and number of sequences, plus an index.

    A sequence's tokens all are 3 plus its number in the order of the shards given.
    """
    entries, first = [], 0
    for number, (source, count) in enumerate(shards):
        file = f"{part}-{number:05d}.bin"
        rows = np.repeat(np.arange(first, first + count), length) + 3
        rows.astype(np.uint16).tofile(directory / file)
        # A document a sequence.
        entries.append(
            {
                "file": file,
                "source": source,
                "sequences": count,
                "end_tokens": count,
                "tokens": count * length,
                "text_bytes": 4 * count * length,
                "targets": count * (length - 1),
            }
        )
        first += count
    index = {
        "schema_version": 2,
        "sequence_length": length,
        "vocab_size": 60_000,
        "dtype": "uint16",
        "packing": "concat",
        "end_token": 0,
        "tokenizer": "ab" * 32,
        "shards": entries,
    }
    (directory / "index.json").write_text(json.dumps(index | changes), encoding="utf-8")
    return directory
