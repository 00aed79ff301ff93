"""Label new texts with a fine-tuned model's folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from trainers import model, tasks, tokenizer
from trainers.task_config import TaskType
from trainers.tasks import Encoded, collate

_BATCH_SIZE = 64
_NO_ENTITY = "O"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text."""

    label: Any
    """A label name; for token classification one name a word."""

    score: Any
    """Its probability; for token classification one a word."""


class Predictor:
    """A fine-tuned model ready to label texts."""

    def __init__(self, folder: Path, task: TaskType, max_length: int) -> None:
        head = {
            "classification": AutoModelForSequenceClassification,
            "token_classification": AutoModelForTokenClassification,
        }[task]
        self._model: PreTrainedModel = head.from_pretrained(str(folder))
        self._tokenizer = tokenizer.load(folder)
        self._words = task == "token_classification"
        self._max_length = max_length
        names = self._model.config.id2label
        self._labels = [names[number] for number in sorted(names)]

    def predict(self, texts: Sequence[Any]) -> list[Prediction]:
        """One prediction per text (a string), or per list of words for token classification."""
        encoding = tasks.encode_texts(
            texts, self._tokenizer, words=self._words, max_length=self._max_length
        )
        ids = [np.asarray(row, dtype=np.int64) for row in encoding["input_ids"]]
        rows = Encoded(ids, [np.asarray(0) for _ in ids])
        found = probabilities(self._model, rows, self._tokenizer.pad_token_id)
        if not self._words:
            return [self._of_text(row) for row in found]
        return [
            self._of_words(row, encoding.word_ids(index), len(texts[index]))
            for index, row in enumerate(found)
        ]

    def _of_text(self, row: NDArray[np.float32]) -> Prediction:
        return Prediction(self._labels[int(row.argmax())], float(row.max()))

    def _of_words(
        self, row: NDArray[np.float32], word_of_token: Sequence[int | None], words: int
    ) -> Prediction:
        left_to_right = model.reads_left_to_right(self._model.config.to_dict())
        positions = tasks.label_positions(word_of_token, left_to_right=left_to_right)
        # Words behind the longest text the model takes get the label that claims nothing.
        labels = [_NO_ENTITY if _NO_ENTITY in self._labels else self._labels[0]] * words
        scores = [0.0] * words
        for word, position in positions.items():
            labels[word] = self._labels[int(row[position].argmax())]
            scores[word] = float(row[position].max())
        return Prediction(labels, scores)


@torch.no_grad()
def probabilities(
    network: PreTrainedModel, rows: Encoded, pad_token: int
) -> list[NDArray[np.float32]]:
    """Label probabilities by row: shape (labels,), or (tokens, labels)."""
    network.eval()
    device = next(network.parameters()).device
    by_length = sorted(range(len(rows)), key=lambda row: len(rows.ids[row]))
    found: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(by_length), _BATCH_SIZE):
        chosen = by_length[start : start + _BATCH_SIZE]
        batch = collate(rows, chosen, pad_token)
        logits = network(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
        ).logits
        for row, values in zip(chosen, logits.float().softmax(-1).cpu().numpy(), strict=True):
            per_token = values.ndim == 2
            found[row] = values[: len(rows.ids[row])] if per_token else values
    return [found[row] for row in range(len(rows))]
