"""Questions whose answer stands in a text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from trainers import metrics
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.segments import Batch
from trainers.task_config import TaskDataConfig
from trainers.task_types.base import (
    Encoded,
    Network,
    OnePass,
    Prediction,
    require_text,
    without_labels,
)

_OUTSIDE = -1
_NOWHERE = -1e9


@dataclass(frozen=True, kw_only=True)
class Windows(Encoded):
    """Texts in windows that overlap, each behind its question: more windows than texts."""

    rows: NDArray[np.int64]
    """Of each window, the text it is of."""
    spans: list[NDArray[np.int64]]
    """Of each window's tokens, where in the text they begin and end, shape (tokens, 2); -1 for
    those that are not of the text."""
    texts: list[str]


class QuestionAnswering(OnePass):
    """The part of a text that answers a question, as in SQuAD 1.1 (arXiv:1606.05250)."""

    head = AutoModelForQuestionAnswering
    constant = "whole text"

    @classmethod
    def label_of(cls, row: Mapping[str, Any], config: TaskDataConfig) -> dict[str, Any]:
        """The answers that are right, and where in the text the first of them begins."""
        require_text(row, config)
        label = row["label"]
        of_squad = label if isinstance(label, dict) else {"text": label}
        given, starts = of_squad.get("text"), of_squad.get("answer_start")
        answers = [given] if isinstance(given, str) else list(given or ())
        if not answers or not all(isinstance(text, str) and text.strip() for text in answers):
            raise DataError(
                f"{config.label} holds no answer: it is a text, a list of texts that are right, or "
                "SQuAD's {text: [...], answer_start: [...]}"
            )
        begins = [starts] if isinstance(starts, int) else list(starts or ())
        start = begins[0] if begins else row["text"].find(answers[0])
        if row["text"][start : start + len(answers[0])] != answers[0] or start < 0:
            raise DataError(f"the answer {answers[0]!r} does not stand in {config.text}")
        return {"answers": answers, "start": int(start)}

    @classmethod
    def label_names(cls, labels: Iterable[Any]) -> list[str]:
        """None."""
        return []

    def configure(self, network: Network) -> dict[str, Any]:
        """Without labels of an earlier task: the head says where an answer begins and ends."""
        return without_labels(network)

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, network: Network
    ) -> Encoded:
        """Texts in windows of `task.max_length` tokens, each behind the question.

        Windows overlap by an answer's length at most, so that an answer is whole in one of them.
        The target is the first and the last token of the answer; of a window without it, token 0
        both.
        """
        assert examples.pairs is not None  # a question is required
        encoding = tokenizer(
            _shortened(examples.pairs, tokenizer, self.task.max_length // 2),
            list(examples.texts),
            truncation="only_second",
            max_length=self.task.max_length,
            stride=min(self.task.answer_length, self.task.max_length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows = np.asarray(encoding["overflow_to_sample_mapping"], dtype=np.int64)
        spans = [
            np.array(
                [
                    place if part == 1 else (_OUTSIDE, _OUTSIDE)
                    for place, part in zip(offsets, encoding.sequence_ids(window), strict=True)
                ],
                dtype=np.int64,
            )
            for window, offsets in enumerate(encoding["offset_mapping"])
        ]
        types = None
        if network.get("type_vocab_size", 0) > 1 and "token_type_ids" in encoding:
            types = [np.asarray(window, dtype=np.int64) for window in encoding["token_type_ids"]]
        return Windows(
            [np.asarray(window, dtype=np.int64) for window in encoding["input_ids"]],
            [
                _target(spans[window], examples.labels[row])
                for window, row in enumerate(rows)
                if examples.labels
            ],
            types,
            rows=rows,
            spans=spans,
            texts=list(examples.texts),
        )

    def logits(self, output: Any, batch: Batch) -> Tensor:
        """Of each token to be the first and the last, shape (rows, length, 2); never of padding."""
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
        is_padding = ~batch["attention_mask"].bool()
        return logits.masked_fill(is_padding.unsqueeze(-1), _NOWHERE)

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Cross-entropy over a window's tokens, the mean of beginning and end."""
        of_each = logits.float().transpose(1, 2).reshape(-1, logits.shape[1])
        return functional.cross_entropy(of_each, targets.reshape(-1))

    def activate(self, logits: Tensor) -> Tensor:
        """Logits as they are: they compare between the windows of a text."""
        return logits

    def predictions(self, outputs: Sequence[NDArray[Any]], rows: Encoded) -> list[Prediction]:
        """The likeliest span of each text, of all its windows."""
        assert isinstance(rows, Windows)
        best: dict[int, tuple[float, str]] = {}
        for window, row in enumerate(rows.rows):
            text, spans = rows.texts[row], rows.spans[window]
            found = _best_span(outputs[window], spans[:, 0] >= 0, self.task.answer_length)
            if found is None:
                continue
            first, last, score = found
            if score > best.get(int(row), (-np.inf, ""))[0]:
                best[int(row)] = (score, text[spans[first, 0] : spans[last, 1]])
        answers = [best.get(row, (None, ""))[1] for row in range(len(rows.texts))]
        return [Prediction(answer.strip(), None) for answer in answers]

    def score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """F1 of words and exact match."""
        right = [label["answers"] for label in truth]
        return metrics.of_spans(right, [one.label for one in found])


def _shortened(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[str]:
    """Questions cut at so many tokens."""
    encoding = tokenizer(
        list(questions),
        add_special_tokens=False,
        truncation=True,
        max_length=length,
        return_offsets_mapping=True,
    )
    ends = [offsets[-1][1] if offsets else 0 for offsets in encoding["offset_mapping"]]
    return [question[:end] for question, end in zip(questions, ends, strict=True)]


def _target(spans: NDArray[np.int64], label: Mapping[str, Any]) -> NDArray[np.int64]:
    """First and last token of the answer in a window; token 0 both where it is not whole in it."""
    start, end = label["start"], label["start"] + len(label["answers"][0])
    holds = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 0] >= 0))
    if len(holds) and spans[holds[0], 0] <= start and spans[holds[-1], 1] >= end:
        return holds[[0, -1]]
    return np.zeros(2, dtype=np.int64)


def _best_span(
    logits: NDArray[Any], is_of_text: NDArray[np.bool_], length: int
) -> tuple[int, int, float] | None:
    """First and last token, and the sum of their logits, of the best span; None without a text."""
    places = np.flatnonzero(is_of_text)
    if not len(places):
        return None
    sums = logits[places, 0][:, None] + logits[places, 1][None, :]
    allowed = np.triu(np.ones_like(sums, dtype=np.bool_)) & ~np.triu(
        np.ones_like(sums, dtype=np.bool_), k=length
    )
    first, last = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
    return int(places[first]), int(places[last]), float(sums[first, last])
