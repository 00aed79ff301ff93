"""What a frozen base says of a task's rows: computed once, for all trials that train a head alone.

Which of a row's token features a head reads differs by family and task: it is found out by asking
the head itself, so that what is kept gives the head's own answers.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from trainers import bases, task_data, task_model
from trainers.engine import Ranks, device_of, to_device
from trainers.predict import tokenizer_of
from trainers.segments import Batch
from trainers.task_config import TaskConfig
from trainers.task_inputs import TaskInputs, TrialExecution
from trainers.task_types import TaskType, type_of
from trainers.task_types.base import Encoded, by_length, collate

logger = logging.getLogger(__name__)

Pooling = Literal["first", "last", "mean", "tokens"]
"""What is kept of a row: the features of its first token, of its last, their mean, or all."""

INDEX = "features.json"
_TOLERANCE = 1e-5
"""Of logits, as a share of the largest: what rounding leaves."""
_ROWS_OF_PROOF = 8
_MOST_POSITIONS = 1 << 16
_MOST_ROWS = 1 << 12


@dataclass(frozen=True)
class Features:
    """Of a split's rows, in their order. Picklable; files are mapped where they are read."""

    open: Callable[[str], Path]
    """Where a file is on this node."""
    pooling: Pooling
    parts: Sequence[Mapping[str, Any]]
    """Each file's name, and the row that it begins with."""

    def shown(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """A batch of these rows as a head takes it that has features below it."""
        return _shown(batch, [torch.from_numpy(self._of(row)) for row in rows], self.pooling)

    def _of(self, row: int) -> NDArray[np.float32]:
        """Of one row, shape (positions, hidden)."""
        part = next(part for part in reversed(self.parts) if part["first"] <= row)
        name, place = part["name"], row - part["first"]
        ends = self._file(_ends(name))
        first = int(ends[place - 1]) if place else 0
        found: NDArray[np.float32] = self._file(name)[first : int(ends[place])]
        return found.copy()

    def _file(self, name: str) -> NDArray[Any]:
        if name not in self._mapped:
            self._mapped[name] = np.load(os.fspath(self.open(name)), mmap_mode="r")
        return self._mapped[name]

    @cached_property
    def _mapped(self) -> dict[str, NDArray[Any]]:
        """Files that this process reads, by name."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mapped"}


@dataclass(frozen=True)
class FeatureWork:
    """Files that one process computes, in a form that travels there."""

    task: TaskConfig
    base: Path
    data: Path
    pooling: Pooling
    execution: TrialExecution
    places: tuple[tuple[str, int], ...]
    """Of each file, the split and the row that it begins with."""
    rows: tuple[Encoded, ...]
    outputs: tuple[Path, ...]


def works(
    inputs: TaskInputs, pooling: Pooling, base: Path, data: Path, folder: Path, *, workers: int
) -> list[FeatureWork]:
    """What is to be computed of what `inputs` were read from `base` and `data`.

    Args:
        inputs: of the task.
        pooling: what is kept of a row.
        base: a Hugging Face folder.
        data: what `task_data.prepare` wrote.
        folder: where the files will be.
        workers: processes that share the files; each loads the base once.
    """
    files = [
        ((split, part.start), _some(rows, part), folder / f"{split}-{part.start:09d}.npy")
        for split, rows in splits_of(inputs).items()
        for part in parts_of(rows, pooling)
    ]
    shares = [files[worker::workers] for worker in range(min(workers, len(files)))]
    return [
        FeatureWork(
            inputs.kind.task, base, data, pooling, inputs.execution, *zip(*share, strict=True)
        )
        for share in shares
    ]


def write_index(folder: Path, pooling: Pooling | None, done: Sequence[FeatureWork]) -> None:
    """Tell what is in the folder, for `opened`."""
    parts: dict[str, list[dict[str, Any]]] = {}
    files = [file for work in done for file in zip(work.places, work.outputs, strict=True)]
    for (split, first), output in sorted(files):
        parts.setdefault(split, []).append({"name": output.name, "first": first})
    text = json.dumps({"pooling": pooling, "parts": parts})
    (folder / INDEX).write_text(text, encoding="utf-8")


def compute(work: FeatureWork) -> None:
    """Write the features of rows: all positions one behind the other, and where each row ends."""
    torch.set_num_threads(work.execution.threads)
    network, weights = bases.weights_of(work.base)
    kind = type_of(work.task, task_data.load_labels(work.data))
    loaded = tokenizer_of(work.base, work.task)
    built = task_model.build(
        kind.configure(network) | {"pad_token_id": loaded.pad_token_id},
        weights,
        kind.head,
        dropout=0.0,
        seed=0,
    ).eval()
    base = built.base_model.to(device_of(Ranks(), use_gpu=work.execution.use_gpu))
    for rows, output in zip(work.rows, work.outputs, strict=True):

        @torch.no_grad()
        def pooled(chosen: Sequence[int], rows: Encoded = rows) -> list[NDArray[np.float32]]:
            inputs = to_device(collate(rows, chosen, loaded.pad_token_id), base.device)
            hidden = base(**inputs).last_hidden_state
            found = _pooled(hidden, inputs["attention_mask"], work.pooling)
            return [of_row.float().cpu().numpy() for of_row in found]

        found = by_length(rows, kind.rows_at_once, pooled)
        np.save(output, np.concatenate(found))
        np.save(output.with_name(_ends(output.name)), np.cumsum([len(row) for row in found]))


def pooling_of(inputs: TaskInputs) -> Pooling | None:
    """The least that a head reads of a row's features; None where it reads something else, too.

    Proved on the head: what it says of features must be what it says of the texts.
    """
    try:
        return _proved(inputs)
    except Exception:  # families differ in all ways; heads learn without features, too
        logger.warning("no features of %s", inputs.network["model_type"], exc_info=True)
        return None


def _proved(inputs: TaskInputs) -> Pooling | None:
    kind = inputs.kind
    built = task_model.build(inputs.network, inputs.weights, kind.head, dropout=0.0, seed=0).eval()
    order = sorted(range(len(inputs.train)), key=lambda row: len(inputs.train.ids[row]))
    step = max(1, len(order) // _ROWS_OF_PROOF)
    rows = [*order[::step][: _ROWS_OF_PROOF - 1], order[-1]]  # with the longest: others are padded
    batch = collate(inputs.train, rows, inputs.tokenizer.pad_token_id)
    batch.pop("labels", None)
    with torch.no_grad():
        truth = kind.logits(built(**batch), batch)
        hidden = built.base_model(**batch).last_hidden_state
        task_model.take_features(built)
        for pooling in get_args(Pooling):
            if _says_the_same(built, kind, pooling, batch, hidden, truth):
                found: Pooling = pooling
                return found
    return None


def parts_of(rows: Encoded, pooling: Pooling) -> Iterator[range]:
    """Rows of each file: few enough for a worker's memory, and for several workers to share."""
    first, positions = 0, 0
    for row, ids in enumerate(rows.ids):
        size = len(ids) if pooling == "tokens" else 1
        if row > first and (positions + size > _MOST_POSITIONS or row - first == _MOST_ROWS):
            yield range(first, row)
            first, positions = row, 0
        positions += size
    yield range(first, len(rows.ids))


def splits_of(inputs: TaskInputs) -> dict[str, Encoded]:
    """The rows that trials look at, by split."""
    return {task_data.TRAIN: inputs.train, task_data.VALIDATION: inputs.validation}


def bytes_of(inputs: TaskInputs, pooling: Pooling) -> dict[str, int]:
    """Size of the features of all rows, by split."""
    settings = dict(inputs.network)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    hidden = config.get_text_config().hidden_size
    return {
        split: hidden
        * np.dtype(np.float32).itemsize
        * (sum(map(len, rows.ids)) if pooling == "tokens" else len(rows))
        for split, rows in splits_of(inputs).items()
    }


def _some(rows: Encoded, chosen: range) -> Encoded:
    """Rows without what only their labels and answers need."""
    types = None if rows.types is None else [rows.types[row] for row in chosen]
    return Encoded([rows.ids[row] for row in chosen], [], types)


def opened(open_: Callable[[str], Path]) -> dict[str, Features]:
    """The features in a folder that `INDEX` tells of, by split; none where there are none.

    Args:
        open_: where a file of that folder is on this node. Picklable.
    """
    index = json.loads(open_(INDEX).read_text(encoding="utf-8"))
    if index["pooling"] is None:
        return {}
    return {
        split: Features(open_, index["pooling"], parts) for split, parts in index["parts"].items()
    }


def _says_the_same(
    head: PreTrainedModel,
    kind: TaskType,
    pooling: Pooling,
    batch: Batch,
    hidden: Tensor,
    truth: Tensor,
) -> bool:
    shown = _shown(batch, _pooled(hidden, batch["attention_mask"], pooling), pooling)
    try:
        logits = kind.logits(head(**shown), shown)
    except (TypeError, ValueError, RuntimeError):  # a head that wants more of its base
        return False
    if logits.shape != truth.shape:
        return False
    apart, mask = (logits - truth).abs(), batch["attention_mask"].bool()
    if truth.shape[:2] == mask.shape and truth.dim() > 2:
        apart, truth = apart[mask], truth[mask]
    return bool(apart.max() <= _TOLERANCE * max(1.0, float(truth.abs().max())))


def _shown(batch: Batch, features: list[Tensor], pooling: Pooling) -> Batch:
    """A batch as a head takes it that has these rows' features below it."""
    shown = {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}
    if pooling != "tokens":
        shown |= {name: batch[name][:, :1] for name in ("input_ids", "attention_mask")}
    return shown | {"inputs_embeds": torch.nn.utils.rnn.pad_sequence(features, batch_first=True)}


def _pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> list[Tensor]:
    """Of each row, shape (positions, hidden)."""
    lengths = mask.sum(1).tolist()
    match pooling:
        case "first":
            return [row[:1] for row in hidden]
        case "last":
            return [row[n - 1 : n] for row, n in zip(hidden, lengths, strict=True)]
        case "mean":
            return [row[:n].mean(0, keepdim=True) for row, n in zip(hidden, lengths, strict=True)]
        case "tokens":
            return [row[:n] for row, n in zip(hidden, lengths, strict=True)]


def _ends(name: str) -> str:
    """The file that says where each row's features end, of the file that holds them."""
    return f"{name.removesuffix('.npy')}.ends.npy"
