"""Label new texts with a fine-tuned model's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from trainers import tokenizer
from trainers.task_config import TaskConfig
from trainers.task_types import class_of, type_of
from trainers.task_types.base import Encoded, Examples, Prediction, TaskType, collate

_BATCH_SIZE = 64


class Predictor:
    """A fine-tuned model ready to label texts."""

    def __init__(self, folder: Path, task: TaskConfig) -> None:
        self._tokenizer = tokenizer.load(folder)
        self._model, self.kind = _loaded(folder, task)

    def predict(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """One prediction per text, or per list of words for token classification.

        Args:
            texts: strings or lists of words.
            pairs: the second texts, where the task compares two.
        """
        examples = Examples(list(texts), [], None if pairs is None else list(pairs))
        rows = self.kind.encode(examples, self._tokenizer, self._model.config.to_dict())
        return predictions(self.kind, self._model, rows, self._tokenizer.pad_token_id)


def _loaded(folder: Path, task: TaskConfig) -> tuple[PreTrainedModel, TaskType]:
    """A model and its task's type; the names of the labels are the model's own."""
    head = class_of(task.type, multi_label=task.multi_label).head
    model: PreTrainedModel = head.from_pretrained(str(folder))
    names = model.config.id2label
    return model, type_of(task, [names[number] for number in sorted(names)])


def predictions(
    kind: TaskType, network: PreTrainedModel, rows: Encoded, pad_token: int
) -> list[Prediction]:
    """What a model says of each row."""
    return kind.predictions(_outputs(kind, network, rows, pad_token), rows)


@torch.no_grad()
def _outputs(
    kind: TaskType, network: PreTrainedModel, rows: Encoded, pad_token: int
) -> list[NDArray[np.float32]]:
    """Activated logits by row: shape (labels,), or (tokens, labels)."""
    network.eval()
    device = next(network.parameters()).device
    by_length = sorted(range(len(rows)), key=lambda row: len(rows.ids[row]))
    found: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(by_length), _BATCH_SIZE):
        chosen = by_length[start : start + _BATCH_SIZE]
        batch = collate(rows, chosen, pad_token)
        inputs = {name: batch[name].to(device) for name in batch if name != "labels"}
        activated = kind.activate(network(**inputs).logits.float()).cpu().numpy()
        for row, values in zip(chosen, activated, strict=True):
            found[row] = values[: len(rows.ids[row])] if values.ndim == 2 else values
    return [found[row] for row in range(len(rows))]
