"""Answers that a decoder writes."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trainers import metrics, pairs
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.segments import IGNORED_LABEL
from trainers.task_config import TaskDataConfig
from trainers.task_model import reads_left_to_right
from trainers.task_types.base import (
    Encoded,
    Network,
    Prediction,
    TaskType,
    by_length,
    collate,
    labelled,
    require_text,
    without_labels,
)


class Prompts(Encoded):
    """Texts, each with its answer where that is known."""

    has_label_of_each_token: ClassVar[bool] = True


class Generation(TaskType):
    """A text, and what is to be written behind it: causal fine-tuning, its loss on the answer only.

    Between both stands the separator that stands between the texts of a pair; the end token ends
    the answer.
    """

    head = AutoModelForCausalLM
    constant = "most frequent answer"
    keeps_head = measures_truth = True
    rows_at_once = 16

    @classmethod
    def label_of(cls, row: Mapping[str, Any], config: TaskDataConfig) -> str:
        """The answer."""
        require_text(row, config)
        if not isinstance(row["label"], str) or not row["label"].strip():
            raise DataError(f"{config.label} is {row['label']!r}; it must be the text to write")
        return row["label"]

    @classmethod
    def label_names(cls, labels: Iterable[Any]) -> list[str]:
        """None."""
        return []

    def configure(self, network: Network) -> dict[str, Any]:
        """As it is."""
        if not reads_left_to_right(network):
            raise DataError(
                f"a {network['model_type']} fills gaps and does not write; type: generation needs "
                "a decoder, such as Llama"
            )
        return without_labels(network)

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, network: Network
    ) -> Encoded:
        """Text, separator, answer, end; the text is cut so that the longest answer has room."""
        before, separator, end = pairs.around_answer(tokenizer)
        room = self.task.max_length - self.task.answer_length - len(before) - 1
        texts, answers = (
            [tokenizer(text, add_special_tokens=False)["input_ids"] for text in found]
            for found in (examples.texts, examples.labels)
        )
        prompts = [[*before, *text[:room], separator] for text in texts]
        written = [[*answer[: self.task.answer_length - 1], end] for answer in answers]
        if not written:
            return Prompts([np.array(prompt, dtype=np.int64) for prompt in prompts], [])
        return Prompts(
            [np.array(p + a, dtype=np.int64) for p, a in zip(prompts, written, strict=True)],
            [
                np.array([IGNORED_LABEL] * len(p) + a, dtype=np.int64)
                for p, a in zip(prompts, written, strict=True)
            ],
        )

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Cross-entropy over the tokens of answers."""
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            targets[:, 1:].flatten(),
            ignore_index=IGNORED_LABEL,
            label_smoothing=smoothing,
        )

    def mass(self, targets: Tensor, weights: Tensor | None) -> float:
        """The number of tokens with a label."""
        return labelled(targets)

    @torch.no_grad()
    def answers(
        self,
        network: PreTrainedModel,
        rows: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        *,
        at_once: int | None = None,
    ) -> list[Prediction]:
        """What the model writes, always the likeliest token; and the loss of the true answers."""
        network.eval()
        end = pairs.around_answer(tokenizer)[2]

        def written(chosen: Sequence[int]) -> list[Prediction]:
            prompts = [_prompt(rows, row) for row in chosen]
            ids = torch.full((len(chosen), max(map(len, prompts))), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for place, prompt in enumerate(prompts):  # the last token is where writing goes on
                ids[place, -len(prompt) :] = torch.from_numpy(prompt)
                mask[place, -len(prompt) :] = 1
            tokens = network.generate(
                input_ids=ids.to(network.device),
                attention_mask=mask.to(network.device),
                max_new_tokens=self.task.answer_length,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=tokenizer.pad_token_id,
                synced_gpus=torch.distributed.is_initialized(),  # none ends before the others
            )[:, ids.shape[1] :]
            texts = tokenizer.batch_decode(_until(end, tokens), skip_special_tokens=True)
            losses = self._losses(network, rows, chosen, tokenizer.pad_token_id)
            return [
                Prediction(text.strip(), None, loss=loss)
                for text, loss in zip(texts, losses, strict=True)
            ]

        return by_length(rows, at_once or self.rows_at_once, written)

    def _losses(
        self, network: PreTrainedModel, rows: Encoded, chosen: Sequence[int], pad_token: int
    ) -> Sequence[float | None]:
        """Of each true answer, in nats a token."""
        if not rows.labels:
            return [None] * len(chosen)
        batch = {
            name: tensor.to(network.device)
            for name, tensor in collate(rows, chosen, pad_token).items()
        }
        labels = batch.pop("labels")
        logits = network(**batch).logits
        return [
            float(self.loss(logits[n : n + 1], labels[n : n + 1], smoothing=0.0, weights=None))
            for n in range(len(chosen))
        ]

    def score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """ROUGE-L, exact match, and the mean loss of the true answers where it is known."""
        losses = [one.loss for one in found if one.loss is not None]
        return metrics.of_texts(truth, [one.label for one in found]) | (
            {"loss": fmean(losses)} if losses else {}
        )


def _prompt(rows: Encoded, row: int) -> NDArray[np.int64]:
    """A row up to where its answer begins."""
    if not rows.labels:
        return rows.ids[row]
    is_prompt: NDArray[np.bool_] = rows.labels[row] == IGNORED_LABEL
    return rows.ids[row][: int(is_prompt.sum())]


def _until(end: int, written: Tensor) -> list[list[int]]:
    """Rows of tokens up to the first end."""
    rows = written.tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
