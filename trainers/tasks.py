"""A task's rows: read, split without duplicates across the border, encoded for a model."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trainers import documents
from trainers.cleaning import text_key
from trainers.errors import DataError
from trainers.segments import IGNORED_LABEL, Batch
from trainers.task_config import TaskConfig, TaskDataConfig

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
LABELS = "labels.json"

_HASH_SPACE = 2**64


@dataclass(frozen=True)
class Examples:
    """Rows of one split: texts (or lists of words) and label names (or lists of them)."""

    texts: list[Any]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Encoded:
    """Rows as a model takes them.

    `labels[i]` has one number for classification; for token classification one per token of
    `ids[i]`, `IGNORED_LABEL` on tokens that carry none.
    """

    ids: list[NDArray[np.int64]]
    labels: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.ids)


def prepare(config: TaskDataConfig, path: Path, directory: Path) -> dict[str, Any]:
    """Write `{train,validation,test}.parquet` and `labels.json`; the facts of the split.

    Raises:
        DataError: a row cannot be used, or a split would be empty.
    """
    by_split: dict[str, list[tuple[str, documents.Row]]] = {name: [] for name in SPLITS}
    for number, row in enumerate(documents.rows(config, path), start=1):
        _check_row(row, config, path, number)
        row = _as_strings(row)
        rank = _rank(_key(row["text"]), config.split.seed)
        by_split[_split_of(rank, config)].append((rank, row))
    rows = {name: [row for _, row in ranked] for name, ranked in by_split.items()}
    if config.train_rows is not None:
        in_seeded_order = sorted(by_split[TRAIN], key=lambda ranked: ranked[0])
        rows[TRAIN] = [row for _, row in in_seeded_order[: config.train_rows]]
    for name in SPLITS:
        if not rows[name]:
            raise DataError(
                f"{path}: {sum(map(len, rows.values()))} rows leave none for {name}; "
                "add rows or change data.split"
            )
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows[name]), _file(directory, name))
    labels = _label_names(rows, path)
    (directory / LABELS).write_text(json.dumps(labels), encoding="utf-8")
    return {"rows": {name: len(rows[name]) for name in SPLITS}, "labels": labels}


def load(directory: Path, split: str) -> Examples:
    """One split that `prepare` wrote."""
    table = pyarrow.parquet.read_table(_file(directory, split))
    return Examples(table.column("text").to_pylist(), table.column("label").to_pylist())


def load_labels(directory: Path) -> list[str]:
    """Label names in the order of their numbers."""
    labels: list[str] = json.loads((directory / LABELS).read_text(encoding="utf-8"))
    return labels


def test_texts(directory: Path) -> list[str]:
    """The texts that must stay unseen until the final evaluation, without their labels."""
    table = pyarrow.parquet.read_table(_file(directory, TEST), columns=["text"])
    return [_joined(text) for text in table.column("text").to_pylist()]


def encode(
    examples: Examples,
    labels: Sequence[str],
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    left_to_right: bool,
) -> Encoded:
    """Rows as token ids and label numbers, cut at `task.max_length` tokens."""
    numbers = {label: number for number, label in enumerate(labels)}
    words = task.type == "token_classification"
    encoding = encode_texts(examples.texts, tokenizer, words=words, max_length=task.max_length)
    ids = [np.asarray(row, dtype=np.int64) for row in encoding["input_ids"]]
    if not words:
        return Encoded(ids, [np.asarray(numbers[label]) for label in examples.labels])
    targets = []
    for index, row_labels in enumerate(examples.labels):
        positions = label_positions(encoding.word_ids(index), left_to_right=left_to_right)
        row = np.full(len(ids[index]), IGNORED_LABEL, dtype=np.int64)
        for word, position in positions.items():
            row[position] = numbers[row_labels[word]]
        targets.append(row)
    return Encoded(ids, targets)


def encode_texts(
    texts: Sequence[Any], tokenizer: PreTrainedTokenizerBase, *, words: bool, max_length: int
) -> Any:
    """Token ids of texts, or of lists of words, with the special tokens the tokenizer adds."""
    return tokenizer(list(texts), is_split_into_words=words, truncation=True, max_length=max_length)


def label_positions(
    word_of_token: Sequence[int | None], *, left_to_right: bool
) -> Mapping[int, int]:
    """The token that carries each word's label: its first, as is usual.

    Its last where the model reads left to right: only there has it seen the whole word.
    """
    positions: dict[int, int] = {}
    for position, word in enumerate(word_of_token):
        if word is not None and (left_to_right or word not in positions):
            positions[word] = position
    return positions


def collate(rows: Encoded, chosen: Sequence[int], pad_token: int) -> Batch:
    """Rows padded on the right to the longest of them; tensors of shape (rows, length)."""
    longest = max(len(rows.ids[row]) for row in chosen)
    ids = torch.full((len(chosen), longest), pad_token)
    mask = torch.zeros((len(chosen), longest), dtype=torch.long)
    per_token = rows.labels[chosen[0]].ndim == 1
    labels = torch.full(tuple(ids.shape) if per_token else (len(chosen),), IGNORED_LABEL)
    for place, row in enumerate(chosen):
        length = len(rows.ids[row])
        ids[place, :length] = torch.from_numpy(rows.ids[row])
        mask[place, :length] = 1
        if per_token:
            labels[place, :length] = torch.from_numpy(rows.labels[row])
        else:
            labels[place] = int(rows.labels[row])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _check_row(row: documents.Row, config: TaskDataConfig, path: Path, number: int) -> None:
    text, label = row["text"], row["label"]
    if isinstance(text, list) != isinstance(label, list):
        raise DataError(
            f"{path}, row {number}: {config.text} and {config.label} must both be lists (token "
            "classification) or neither (classification)"
        )
    if isinstance(text, list) and None in [*text, *label]:
        raise DataError(f"{path}, row {number}: a word or label is empty (null)")
    if isinstance(text, list) and len(text) != len(label):
        raise DataError(f"{path}, row {number}: {len(text)} words but {len(label)} labels")


def _label_names(rows: Mapping[str, list[documents.Row]], path: Path) -> list[str]:
    """All names, sorted; one that training rows lack cannot be learnt but does count in scores."""
    names = {
        name
        for split in SPLITS
        for row in rows[split]
        for name in (row["label"] if isinstance(row["label"], list) else [row["label"]])
    }
    if len(names) < 2:
        raise DataError(f"{path}: the task needs two labels at least; found {sorted(names)}")
    return sorted(names)


def _as_strings(row: documents.Row) -> documents.Row:
    """Labels are names, also where the file has numbers."""
    return {
        name: list(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in row.items()
    }


def _split_of(rank: str, config: TaskDataConfig) -> str:
    position = int(rank[:16], 16) / _HASH_SPACE
    if position < config.split.test:
        return TEST
    return VALIDATION if position < config.split.test + config.split.validation else TRAIN


def _rank(key: str, seed: int) -> str:
    """A place in a seeded order that follows from the text alone, so duplicates share it."""
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _key(text: Any) -> str:
    return text_key(_joined(text))


def _joined(text: Any) -> str:
    return " ".join(text) if isinstance(text, list) else str(text)


def _file(directory: Path, split: str) -> Path:
    return directory / f"{split}.parquet"
