"""Texts of words that have a label each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from trainers import metrics
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.segments import IGNORED_LABEL
from trainers.task_config import TaskDataConfig
from trainers.task_model import reads_left_to_right
from trainers.task_types.base import (
    Encoded,
    Network,
    OnePass,
    Prediction,
    at_least_two,
    labelled,
    with_labels,
)

_NO_ENTITY = "O"


@dataclass(frozen=True, kw_only=True)
class Words(Encoded):
    """Rows of words."""

    carriers: list[NDArray[np.int64]]
    """Of each word the place of the token with its label, -1 where it has none."""

    has_label_of_each_token: ClassVar[bool] = True


class TokenClassification(OnePass):
    """One label a word, as in CoNLL's tasks: `B-` and `I-` open and continue an entity."""

    head = AutoModelForTokenClassification
    has_labels = True

    @classmethod
    def label_of(cls, row: Mapping[str, Any], config: TaskDataConfig) -> list[str]:
        """The names of the words' labels."""
        text, label = row["text"], row["label"]
        if not isinstance(text, list) or not isinstance(label, list):
            raise DataError(
                f"{config.text} and {config.label} must both be lists: words, and their labels"
            )
        if None in [*text, *label]:
            raise DataError("a word or label is empty (null)")
        if len(text) != len(label):
            raise DataError(f"{len(text)} words but {len(label)} labels")
        return list(map(str, label))

    @classmethod
    def label_names(cls, labels: Iterable[Any]) -> list[str]:
        """All labels, sorted."""
        return at_least_two({name for label in labels for name in label})

    def configure(self, network: Network) -> dict[str, Any]:
        """With the labels' names."""
        return with_labels(network, self.labels, None)

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, network: Network
    ) -> Encoded:
        """Rows as token ids; each word's label stands on one of its tokens.

        On its first, as is usual; on its last where the model reads left to right: only there has
        it seen the whole word.
        """
        # As one text, so that words become the tokens they are in running text: given one by one,
        # many tokenizers take them for pieces of one long word.
        encoding = tokenizer(
            [" ".join(words) for words in examples.texts],
            truncation=True,
            max_length=self.task.max_length,
            return_offsets_mapping=True,
        )
        left_to_right = reads_left_to_right(network)
        ids = [np.asarray(row, dtype=np.int64) for row in encoding["input_ids"]]
        carriers = [
            carriers_of(
                words_of(encoding["offset_mapping"][row], words),
                len(words),
                left_to_right=left_to_right,
            )
            for row, words in enumerate(examples.texts)
        ]
        numbers = {label: number for number, label in enumerate(self.labels)}
        targets = []
        for row, label in enumerate(examples.labels):
            target = np.full(len(ids[row]), IGNORED_LABEL, dtype=np.int64)
            has_token = carriers[row] >= 0
            named = np.array([numbers[name] for name in label], dtype=np.int64)
            target[carriers[row][has_token]] = named[has_token]
            targets.append(target)
        return Words(ids, targets, carriers=carriers)

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Cross-entropy over words."""
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            targets.reshape(-1),
            ignore_index=IGNORED_LABEL,
            label_smoothing=smoothing,
        )

    def mass(self, targets: Tensor, weights: Tensor | None) -> float:
        """The number of tokens with a label."""
        return labelled(targets)

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return logits.softmax(-1)

    def predictions(self, outputs: Sequence[NDArray[Any]], rows: Encoded) -> list[Prediction]:
        """The likeliest label of each word."""
        assert isinstance(rows, Words)
        # Words without a token, as those behind the longest text, get what claims nothing.
        other = _NO_ENTITY if _NO_ENTITY in self.labels else self.labels[0]
        found = []
        for row, carriers in zip(outputs, rows.carriers, strict=True):
            labels, scores = [other] * len(carriers), [0.0] * len(carriers)
            for word in np.flatnonzero(carriers >= 0):
                of_word = row[carriers[word]]
                labels[word] = self.labels[int(of_word.argmax())]
                scores[word] = float(of_word.max())
            found.append(Prediction(labels, scores))
        return found

    def score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """Precision, recall and F1 of whole entities, accuracy of words."""
        return metrics.of_entities(truth, [one.label for one in found])


def words_of(spans: Sequence[tuple[int, int]], words: Sequence[str]) -> list[int | None]:
    """The word that each token ends in; None for special tokens, and for spaces alone.

    Args:
        spans: where the tokens begin and end in the words joined by single spaces.
        words: of the text.
    """
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    found: list[int | None] = []
    for start, end in spans:
        word = int(np.searchsorted(ends, end)) if end > start else len(words)
        begins = int(ends[word]) - len(words[word]) if word < len(words) else end
        found.append(word if end > begins else None)
    return found


def carriers_of(
    word_of_token: Sequence[int | None], words: int, *, left_to_right: bool
) -> NDArray[np.int64]:
    """The place of the token that carries each word's label; -1 for a word without a token."""
    places = np.full(words, -1, dtype=np.int64)
    for place, word in enumerate(word_of_token):
        if word is not None and (left_to_right or places[word] < 0):
            places[word] = place
    return places
