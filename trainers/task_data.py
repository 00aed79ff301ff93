"""A task's rows: read, and divided without duplicates across a border."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from trainers import documents
from trainers.cleaning import text_key
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.task_config import SplitConfig, TaskDataConfig

if TYPE_CHECKING:
    from trainers.task_types.base import TaskType

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
LABELS = "labels.json"

_HASH_SPACE = 2**64


@dataclass(frozen=True)
class _Ranked:
    """A row with its place in a seeded order that follows from its text alone."""

    key: str
    """The same for duplicates."""
    rank: str
    row: documents.Row


def prepare(
    config: TaskDataConfig, kind: "type[TaskType]", base: Path, directory: Path
) -> dict[str, Any]:
    """Write `{train,validation,test}.parquet` and `labels.json`; the facts of the split.

    Args:
        config: the user's section.
        kind: of the task.
        base: folder of the pipeline file.
        directory: gets the files.

    Raises:
        DataError: a row cannot be used, or a split would be empty.
    """
    files = {
        split: documents.expand(path, base, config.format)[0]
        for split, path in config.paths.items()
    }
    read = {split: list(_rows(config, kind, place)) for split, place in files.items()}
    divided = _divide(config.split, kind, read)
    left_out = _leave_out_crossing(divided)
    if config.train_rows is not None:
        in_seeded_order = sorted(divided[TRAIN], key=lambda one: one.rank)
        divided[TRAIN] = in_seeded_order[: config.train_rows]
    rows = {split: [one.row for one in divided[split]] for split in SPLITS}
    for split in SPLITS:
        if not rows[split]:
            raise DataError(
                f"{files.get(split, files[TRAIN])}: {sum(map(len, rows.values()))} rows leave none "
                f"for {split}; add rows or change data.split"
            )
    try:
        labels = kind.label_names(row["label"] for split in SPLITS for row in rows[split])
    except DataError as error:
        raise DataError(f"{files[TRAIN]}: {error}") from error
    for split in SPLITS:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows[split]), _file(directory, split))
    (directory / LABELS).write_text(json.dumps(labels), encoding="utf-8")
    return {
        "rows": {split: len(rows[split]) for split in SPLITS},
        "labels": labels,
        "left_out": left_out,
    }


def load(directory: Path, split: str) -> Examples:
    """One split that `prepare` wrote."""
    table = pyarrow.parquet.read_table(_file(directory, split))
    pairs = table.column("pair").to_pylist() if "pair" in table.column_names else None
    return Examples(table.column("text").to_pylist(), table.column("label").to_pylist(), pairs)


def slices_of_test(directory: Path) -> list[str]:
    """The slice that each test row belongs to; none where `data.slice_by` names no column."""
    table = pyarrow.parquet.read_table(_file(directory, TEST))
    found: list[str] = table.column("slice").to_pylist() if "slice" in table.column_names else []
    return found


def count(directory: Path, split: str) -> int:
    """Number of rows of a split."""
    return int(pyarrow.parquet.read_metadata(_file(directory, split)).num_rows)


def fewer(examples: Examples, share: float, kind: "type[TaskType]", seed: int) -> Examples:
    """A seeded share of the rows, of each label alike, and one row of each label at least.

    What a smaller share holds, a larger one holds, too.
    """
    strata: dict[str | None, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(len(examples)):
        strata.setdefault(kind.stratum_of(examples.labels[row]), []).append(int(row))
    kept = sorted(
        row for rows in strata.values() for row in rows[: max(1, round(share * len(rows)))]
    )

    def of(values: list[Any]) -> list[Any]:
        return [values[row] for row in kept]

    pairs = None if examples.pairs is None else of(examples.pairs)
    return Examples(of(examples.texts), of(examples.labels), pairs)


def load_labels(directory: Path) -> list[str]:
    """Label names in the order of their numbers."""
    labels: list[str] = json.loads((directory / LABELS).read_text(encoding="utf-8"))
    return labels


def digest_of_test(directory: Path) -> str:
    """SHA-256 over the test rows, however they came to be: texts and labels, in their order."""
    table = pyarrow.parquet.read_table(_file(directory, TEST))
    table = table.select([name for name in table.column_names if name != "slice"])
    return hashlib.sha256(json.dumps(table.to_pylist(), sort_keys=True).encode()).hexdigest()


def test_texts(directory: Path) -> list[str]:
    """The texts that must stay unseen until the final evaluation, without their labels."""
    table = pyarrow.parquet.read_table(_file(directory, TEST))
    columns = [name for name in ("text", "pair") if name in table.column_names]
    return [_joined(text) for name in columns for text in table.column(name).to_pylist()]


def _rows(config: TaskDataConfig, kind: "type[TaskType]", place: str) -> Iterator[_Ranked]:
    for number, row in enumerate(documents.rows(config, place), start=1):
        try:
            label = kind.label_of(row, config)
        except DataError as error:
            raise DataError(f"{place}, row {number}: {error}") from error
        texts: documents.Row = {
            name: _as_text(row[name]) for name in ("text", "pair") if name in row
        }
        key = "\n".join(text_key(_joined(text)) for text in texts.values())
        rank = hashlib.sha256(f"{config.split.seed}:{key}".encode()).hexdigest()
        slice_ = {"slice": str(row["slice"])} if "slice" in row else {}
        yield _Ranked(key, rank, {**texts, **slice_, "label": label})


def _divide(
    config: SplitConfig, kind: "type[TaskType]", read: Mapping[str, Sequence[_Ranked]]
) -> dict[str, list[_Ranked]]:
    """Rows by split: those of files of their own, and those of `path`, divided."""
    shares = {split: getattr(config, split) or 0.0 for split in (TEST, VALIDATION)}
    places = (
        _places_in_strata(read[TRAIN], kind)
        if config.stratify
        else {one.key: int(one.rank[:16], 16) / _HASH_SPACE for one in read[TRAIN]}
    )
    divided: dict[str, list[_Ranked]] = {split: list(read.get(split, ())) for split in SPLITS}
    divided[TRAIN] = []
    for one in read[TRAIN]:
        position = places[one.key]
        if position < shares[TEST]:
            divided[TEST].append(one)
        elif position < shares[TEST] + shares[VALIDATION]:
            divided[VALIDATION].append(one)
        else:
            divided[TRAIN].append(one)
    return divided


def _places_in_strata(rows: Sequence[_Ranked], kind: "type[TaskType]") -> dict[str, float]:
    """Where a text stands among those of its label, from 0 to 1, by key.

    A text that comes with several labels counts for the first of them in the alphabet, wherever its
    rows stand.
    """
    ranks = {one.key: one.rank for one in rows}
    of_text: dict[str, set[str]] = {key: set() for key in ranks}
    for one in rows:
        of_text[one.key].add(str(kind.stratum_of(one.row["label"])))
    strata: dict[str, dict[str, str]] = {}
    for key, names in of_text.items():
        strata.setdefault(min(names), {})[key] = ranks[key]
    return {
        key: (place + 0.5) / len(ranks)
        for ranks in strata.values()
        for place, key in enumerate(sorted(ranks, key=ranks.__getitem__))
    }


def _leave_out_crossing(divided: dict[str, list[_Ranked]]) -> int:
    """Take texts of the test rows out of the others, and of the validation rows out of training.

    Only files of their own can bring such; how many rows are taken out.
    """
    seen: set[str] = set()
    left_out = 0
    for split in (TEST, VALIDATION, TRAIN):
        kept = [one for one in divided[split] if one.key not in seen]
        left_out += len(divided[split]) - len(kept)
        divided[split] = kept
        seen |= {one.key for one in kept}
    return left_out


def _as_text(value: Any) -> Any:
    return list(map(str, value)) if isinstance(value, list) else str(value)


def _joined(text: Any) -> str:
    return " ".join(text) if isinstance(text, list) else str(text)


def _file(directory: Path, split: str) -> Path:
    return directory / f"{split}.parquet"
