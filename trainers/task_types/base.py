"""What every type of task answers: how its rows become tensors, what is learnt, what it says."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainers import memory
from trainers.errors import DataError, OutOfMemoryError
from trainers.examples import Examples
from trainers.segments import IGNORED_LABEL, Batch
from trainers.task_config import TaskConfig, TaskDataConfig

Answer = TypeVar("Answer")

Network = Mapping[str, Any]
"""A model's configuration."""

TOKENS_AT_ONCE = 1 << 14
"""Most tokens, padding included, that a model is asked about together; one row may have more."""


class Shown(Protocol):
    """What a head is shown of rows instead of their tokens."""

    def shown(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """A batch of these rows with their features."""


@dataclass(frozen=True)
class Encoded:
    """Rows as a model takes them."""

    ids: list[NDArray[np.int64]]
    labels: list[NDArray[Any]]
    """A number, or several, or one for each token; empty where nobody knows them."""
    types: list[NDArray[np.int64]] | None = None
    """0 for tokens of the first text, 1 for those of the second; None where the model or its
    tokenizer knows nothing of them."""
    features: Shown | None = None
    """What a head alone takes; None where a whole model reads the tokens."""

    has_label_of_each_token: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one row."""

    label: Any
    """In the form of the task's labels."""
    score: Any
    """Probability of the label; of each word's, of each label's; none for a number."""
    probabilities: list[float] | None = None
    """Of every label, in their order, where one text has one distribution."""
    loss: float | None = None
    """Of the true answer, in nats a token, where the answer is written and known."""


class TaskType(ABC):
    """One task's rows, targets, loss, answers and measures."""

    head: ClassVar[Any]
    """The class of `transformers` that loads a model with the type's head."""
    has_labels: ClassVar[bool] = False
    """Whether answers are names out of a list that the model knows."""
    constant: ClassVar[str] = "majority"
    """Name of the baseline that says the same of every row."""
    measures_truth: ClassVar[bool] = False
    """Whether a model is asked what it makes of the true answers, too."""
    keeps_head: ClassVar[bool] = False
    """Whether the head is the base's own, not a new one."""
    rows_at_once: ClassVar[int] = 64
    """Most rows that a model is asked for together; of long ones fewer, see `TOKENS_AT_ONCE`."""

    def __init__(self, task: TaskConfig, labels: Sequence[str]) -> None:
        self.task, self.labels = task, list(labels)

    @classmethod
    @abstractmethod
    def label_of(cls, row: Mapping[str, Any], config: TaskDataConfig) -> Any:
        """A row's label in the form that is kept.

        Raises:
            DataError: text and label do not go together; says how.
        """

    @classmethod
    @abstractmethod
    def label_names(cls, labels: Iterable[Any]) -> list[str]:
        """All names in the labels of a task, sorted; empty where labels are numbers.

        Raises:
            DataError: they make no task; says why.
        """

    @classmethod
    def stratum_of(cls, label: Any) -> str | None:
        """Rows that a stratified split deals out apart from others; None where there are none."""
        return None

    @abstractmethod
    def configure(self, network: Network) -> dict[str, Any]:
        """A base's configuration with what the head has to know."""

    @abstractmethod
    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, network: Network
    ) -> Encoded:
        """Rows as token ids and targets, cut at `task.max_length` tokens."""

    def weights(self, labels: Sequence[Any]) -> NDArray[np.float32] | None:
        """Of the labels in the loss, as `task.class_weights` asks; from those of training rows."""
        return None

    def logits(self, output: Any, batch: Batch) -> Tensor:
        """What a model of the type's head gave for a batch, as `loss` reads it."""
        logits: Tensor = output.logits
        return logits

    @abstractmethod
    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Of rows, or tokens, with logits of shape (..., labels); the mean."""

    def mass(self, targets: Tensor, weights: Tensor | None) -> float:
        """What the mean in `loss` divides by: the number of rows."""
        return float(len(targets))

    @abstractmethod
    def answers(
        self,
        network: PreTrainedModel,
        rows: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        *,
        at_once: int | None = None,
    ) -> list[Prediction]:
        """What a model says of each row that `encode` made; asked for `at_once` rows together.

        Collective where several processes train the model.
        """

    @abstractmethod
    def score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """Every metric of the type that these rows define."""

    def required_score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """`score`, with the metric that the task is ranked by.

        Raises:
            DataError: it is not defined on these rows.
        """
        scores = self.score(truth, found)
        if self.task.metric not in scores:
            raise DataError(
                f"{self.task.metric} is not defined on {len(truth)} rows with the labels "
                f"{sorted(set(map(str, truth)))}; use larger splits or another metric"
            )
        return scores


class OnePass(TaskType):
    """Types whose answers are read off the logits of one forward pass."""

    @torch.no_grad()
    def answers(
        self,
        network: PreTrainedModel,
        rows: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        *,
        at_once: int | None = None,
    ) -> list[Prediction]:
        """What a model says of each row."""
        network.eval()

        def outputs(chosen: Sequence[int]) -> list[NDArray[Any]]:
            batch = collate(rows, chosen, tokenizer.pad_token_id)
            inputs = {name: batch[name].to(network.device) for name in batch if name != "labels"}
            logits = self.logits(network(**inputs), inputs)
            activated = self.activate(logits.float()).cpu().numpy()
            return [
                values[: len(rows.ids[row])] if values.ndim == 2 else values
                for row, values in zip(chosen, activated, strict=True)
            ]

        return self.predictions(by_length(rows, at_once or self.rows_at_once, outputs), rows)

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """Logits as what `predictions` reads, of the same shape."""

    @abstractmethod
    def predictions(self, outputs: Sequence[NDArray[Any]], rows: Encoded) -> list[Prediction]:
        """What `activate`d logits say, by row: shape (labels,), or (tokens, labels)."""


class TextType(OnePass):
    """Types that answer once for each text, or pair of texts."""

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, network: Network
    ) -> Encoded:
        """Rows as token ids and targets; the longer text of a pair is cut first."""
        encoding = tokenizer(
            list(examples.texts), examples.pairs, truncation=True, max_length=self.task.max_length
        )
        ids = [np.asarray(row, dtype=np.int64) for row in encoding["input_ids"]]
        types = None
        has_types = network.get("type_vocab_size", 0) > 1 and "token_type_ids" in encoding
        if examples.pairs is not None and has_types:
            types = [np.asarray(row, dtype=np.int64) for row in encoding["token_type_ids"]]
        return Encoded(ids, [self.target(label) for label in examples.labels], types)

    @abstractmethod
    def target(self, label: Any) -> NDArray[Any]:
        """A label as what the loss takes."""


def by_length(
    rows: Encoded, at_once: int, answer: Callable[[Sequence[int]], Sequence[Answer]]
) -> list[Answer]:
    """What `answer` says of each row, asked for several of similar length: little is padding.

    Args:
        rows: of a task.
        at_once: most rows that are asked for together; fewer when memory runs out, unless others
            wait, and no more than `TOKENS_AT_ONCE` allows.
        answer: is given numbers of rows.
    """
    if torch.distributed.is_initialized():
        return _shared_by_length(rows, at_once, answer)
    left = sorted(range(len(rows)), key=lambda row: len(rows.ids[row]))
    found: dict[int, Answer] = {}
    while left:
        chosen = _first_batch(rows, left, at_once)
        try:
            with memory.exhaustion_told_apart():
                answers = answer(chosen)
        except OutOfMemoryError:
            if len(chosen) == 1:
                raise
            at_once = (len(chosen) + 1) // 2
            continue
        found.update(zip(chosen, answers, strict=True))
        left = left[len(chosen) :]
    return [found[row] for row in range(len(rows))]


def _shared_by_length(
    rows: Encoded, at_once: int, answer: Callable[[Sequence[int]], Sequence[Answer]]
) -> list[Answer]:
    """The same, shared out among ranks that train one model. Collective.

    All ranks ask equally often: with ZeRO-3 they gather the weights together.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    left = sorted(range(len(rows)), key=lambda row: len(rows.ids[row]))
    chunks: list[Sequence[int]] = []
    while left:
        chunks.append(_first_batch(rows, left, at_once))
        left = left[len(chunks[-1]) :]
    chunks += chunks[:1] * (-len(chunks) % world_size)
    mine: dict[int, Answer] = {}
    for chunk in chunks[rank::world_size]:
        mine.update(zip(chunk, answer(chunk), strict=True))
    of_all: list[dict[int, Answer]] = [{}] * world_size
    torch.distributed.all_gather_object(of_all, mine)
    found = {row: answer for of_rank in of_all for row, answer in of_rank.items()}
    return [found[row] for row in range(len(rows))]


def _first_batch(rows: Encoded, order: Sequence[int], at_once: int) -> Sequence[int]:
    """The first of these rows, the shortest first, that are asked for together."""
    for number, row in enumerate(order[:at_once]):
        if number and (number + 1) * len(rows.ids[row]) > TOKENS_AT_ONCE:
            return order[:number]
    return order[:at_once]


def labelled(targets: Tensor) -> float:
    """Number of tokens with a label."""
    return float((targets != IGNORED_LABEL).sum())


def with_labels(network: Network, names: Sequence[str], problem: str | None) -> dict[str, Any]:
    """The configuration of a model with a task's label names.

    Args:
        network: of the base.
        names: of the labels, in the order of their numbers.
        problem: what `transformers` calls the problem; it says how its pipelines read logits.
    """
    return {
        **network,
        "id2label": dict(enumerate(names)),
        "label2id": {label: number for number, label in enumerate(names)},
        "problem_type": problem,
    }


def without_labels(network: Network) -> dict[str, Any]:
    """The configuration without what an earlier task's head had to know."""
    of_heads = {"id2label", "label2id", "num_labels", "problem_type"}
    return {name: value for name, value in network.items() if name not in of_heads}


def at_least_two(names: set[str]) -> list[str]:
    """Label names, sorted.

    Raises:
        DataError: there is nothing to tell apart.
    """
    if len(names) < 2:
        raise DataError(f"the task needs two labels at least; found {sorted(names)}")
    return sorted(names)


def require_text(row: Mapping[str, Any], config: TaskDataConfig) -> None:
    """Refuse words where a text should be.

    Raises:
        DataError: says which column.
    """
    for column, value in ((config.text, row["text"]), (config.text_pair, row.get("pair"))):
        if isinstance(value, list):
            raise DataError(
                f"{column} is a list; texts are strings (words go with type: token_classification)"
            )


def collate(rows: Encoded, chosen: Sequence[int], pad_token: int) -> Batch:
    """Rows padded on the right to the longest of them; tensors of shape (rows, length).

    Labels, where there are any, have shape (rows,), (rows, labels), or (rows, length) with
    `IGNORED_LABEL` on tokens that carry none.
    """
    of_tokens = {"input_ids": (rows.ids, pad_token)}
    if rows.types is not None:
        of_tokens["token_type_ids"] = (rows.types, 0)
    if rows.has_label_of_each_token and rows.labels:
        of_tokens["labels"] = (rows.labels, IGNORED_LABEL)
    lengths = [len(rows.ids[row]) for row in chosen]
    shape = (len(chosen), max(lengths))
    batch = {"attention_mask": torch.zeros(shape, dtype=torch.long)}
    for name, (values, filling) in of_tokens.items():
        batch[name] = torch.full(shape, filling)
        for place, row in enumerate(chosen):
            batch[name][place, : lengths[place]] = torch.from_numpy(values[row])
    for place, length in enumerate(lengths):
        batch["attention_mask"][place, :length] = 1
    if rows.labels and "labels" not in batch:
        batch["labels"] = torch.from_numpy(np.stack([rows.labels[row] for row in chosen]))
    return batch if rows.features is None else rows.features.shown(batch, chosen)
