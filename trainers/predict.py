"""Label new texts with a fine-tuned model's folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trainers import pairs, tokenizer
from trainers.engine import Ranks, device_of
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.task_config import TaskConfig
from trainers.task_types import class_of, type_of
from trainers.task_types.base import Prediction, TaskType


class Predictor:
    """A fine-tuned model ready to label texts."""

    def __init__(
        self, folder: Path, task: TaskConfig, *, use_gpu: bool = False, threads: int | None = None
    ) -> None:
        """Load a folder.

        Args:
            folder: of the model.
            task: that it was trained for.
            use_gpu: whether it runs on one.
            threads: of this process; None leaves them as they are.

        Raises:
            DataError: there is no GPU.
        """
        if use_gpu and not torch.cuda.is_available():
            raise DataError("there is no GPU that PyTorch sees; the model runs on the CPU, too")
        if threads is not None:
            torch.set_num_threads(threads)
        # Some tokenizers forget on loading the form for pairs that they were saved with.
        self._tokenizer = tokenizer_of(folder, task)
        self._model, self.kind = _loaded(folder, task)
        self._model.to(device_of(Ranks(), use_gpu=use_gpu))

    def predict(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """One prediction per text, or per list of words for token classification.

        Args:
            texts: strings or lists of words.
            pairs: the second texts, where the task compares two.
        """
        return self.answer(Examples(list(texts), [], None if pairs is None else list(pairs)))

    def answer(self, examples: Examples) -> list[Prediction]:
        """One prediction per row; labels, where they are known, are only measured."""
        if not examples.texts:
            return []
        if not self.kind.measures_truth:
            # A label that this model does not know is no reason to say nothing.
            examples = replace(examples, labels=[])
        rows = self.kind.encode(examples, self._tokenizer, self._model.config.to_dict())
        return self.kind.answers(self._model, rows, self._tokenizer)


def tokenizer_of(folder: Path, task: TaskConfig) -> PreTrainedTokenizerFast:
    """A folder's tokenizer as a task needs it."""
    loaded = tokenizer.load(folder)
    loaded.model_max_length = task.max_length
    return loaded if task.data.text_pair is None else pairs.with_separator(loaded)


def _loaded(folder: Path, task: TaskConfig) -> tuple[PreTrainedModel, TaskType]:
    """A model and its task's type; the names of the labels are the model's own."""
    head = class_of(task.type, multi_label=task.multi_label).head
    # Weights without pickle, and no code but that of transformers itself.
    model: PreTrainedModel = head.from_pretrained(
        str(folder), use_safetensors=True, trust_remote_code=False
    )
    names = model.config.id2label
    return model, type_of(task, [names[number] for number in sorted(names)])
