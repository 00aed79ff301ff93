"""What the user may say about downstream tasks. Pure schemas: no torch, fast to load."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainers.config import WHERE, Fraction, PositiveFloat, PositiveInt, Schema, format_of

TaskType = Literal[
    "classification", "regression", "token_classification", "question_answering", "generation"
]
Metric = Literal[
    "accuracy",
    "macro_f1",
    "micro_f1",
    "matthews",
    "auroc",
    "pearson",
    "spearman",
    "mse",
    "entity_f1",
    "entity_precision",
    "entity_recall",
    "exact_match",
    "f1",
    "rouge_l",
    "loss",
]
Method = Literal["full", "lora", "head"]

METRICS_OF_TASK: dict[TaskType, tuple[Metric, ...]] = {
    "classification": ("accuracy", "macro_f1", "micro_f1", "matthews", "auroc"),
    "regression": ("pearson", "spearman", "mse"),
    "token_classification": ("entity_f1", "entity_precision", "entity_recall", "accuracy"),
    "question_answering": ("f1", "exact_match"),
    "generation": ("rouge_l", "exact_match", "loss"),
}
LOWER_IS_BETTER: frozenset[Metric] = frozenset({"mse", "loss"})


def merit_of(metric: Metric, scores: Mapping[str, float]) -> float:
    """A metric, turned so that higher is better; -inf where it is missing or NaN."""
    value = scores.get(metric, math.nan)
    if math.isnan(value):
        return -math.inf
    return -value if metric in LOWER_IS_BETTER else value


UNUSED_OF_TASK: dict[TaskType, dict[str, str]] = {
    "classification": {},
    "regression": {"label_smoothing": "a number has no wrong labels to spread mass over"},
    "token_classification": {"prefix_loss": "each word has its own label, a prefix has none"},
    "question_answering": {
        "label_smoothing": "most tokens of a text cannot begin the answer",
        "prefix_loss": "a prefix of the text need not hold the answer",
    },
    "generation": {
        "prefix_loss": "the loss is that of every token of the answer already",
        "gradual_unfreezing": "its head is the base's own, which was trained with the rest",
    },
}
"""Hyperparameters that do nothing for a type, and why."""

METHODS_OF_TASK: dict[TaskType, tuple[Method, ...]] = {
    name: ("full", "lora") if name == "generation" else ("full", "lora", "head")
    for name in METRICS_OF_TASK
}
"""A method that trains a new head alone needs one."""

METHODS_OF_HYPERPARAMETER: dict[str, tuple[Method, ...]] = {
    "layer_decay": ("full", "lora"),
    "frozen_layers": ("full",),
    "gradual_unfreezing": ("full",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "lora_dropout": ("lora",),
}
"""Hyperparameters that do something with these methods alone."""

SCHEDULES_OF_HYPERPARAMETER: dict[str, tuple[str, ...]] = {"decay": ("wsd",)}
"""Hyperparameters that do something with these schedules alone."""

MAY_CHANGE = ("learning_rate", "dropout", "token_dropout", "label_smoothing", "prefix_loss")
"""Hyperparameters that a training can go on with other values of, at the end of an epoch."""

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class SplitConfig(Schema):
    """A seeded split of a task's rows; rows with the same text fall on the same side.

    Which side follows from seed and text alone: rows that come later move no row that was there. So
    a champion is never tested on what it was trained on.
    """

    test: Share | None = None
    """Share of rows sealed until the final evaluation; absent with `data.test_path`."""

    validation: Share | None = None
    """Share of rows that search and selection may look at; absent with `data.validation_path`."""

    seed: int = 0
    """Of the split."""

    stratify: bool = False
    """Deal out each label's rows by themselves, so that splits have its exact share: for few rows
    that stay as they are. Rows that come later may then move others."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if (self.test or 0.0) + (self.validation or 0.0) >= 1.0:
            raise ValueError(f"test {self.test} + validation {self.validation} leave no rows")
        return self


class TaskDataConfig(Schema):
    """A task's labelled rows."""

    path: Annotated[str, WHERE]
    """One file of rows; relative to the pipeline file."""

    validation_path: Annotated[str | None, WHERE] = None
    """A file of its own for the rows that search and selection may look at."""

    test_path: Annotated[str | None, WHERE] = None
    """A file of its own for the rows that stay sealed. Rows of `path` with a text that is in
    another file are left out."""

    format: Literal["csv", "jsonl", "parquet", "conll", "dataset"]
    """`conll` is word, tab, label per line with empty lines between sentences; `dataset` a folder
    that `datasets` saved, one split of it."""

    text: str = "text"
    """Column with the text, or with the list of words for token classification."""

    text_pair: str | None = None
    """Column with a second text, where the task compares two; with the question, where it answers
    one from the text."""

    label: str = "label"
    """Column with the label, number or answer; with the list of labels for token classification and
    `multi_label`; for question answering also a list of answers that are right, or SQuAD's
    `{text: [...], answer_start: [...]}`."""

    label_separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the labels in a text, for `multi_label` in files without lists (CSV)."""

    slice_by: str | None = None
    """Column with the slice that a row belongs to, such as its language: a model's score on each is
    what `promote.guards.worst_slice` looks at."""

    encoding: str = "utf-8"
    """Text encoding of csv, jsonl and conll files."""

    split: SplitConfig = SplitConfig()
    """How rows are divided."""

    train_rows: PositiveInt | None = None
    """Use only this many labelled training rows, chosen by the split's seed; None is all."""

    @property
    def paths(self) -> dict[str, str]:
        """The files, by the split whose rows they hold; `train` holds those that are divided."""
        named = {
            "train": self.path,
            "validation": self.validation_path,
            "test": self.test_path,
        }
        return {split: path for split, path in named.items() if path is not None}

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by the name their values have in a row."""
        more = {"pair": self.text_pair, "slice": self.slice_by}
        given = {name: column for name, column in more.items() if column is not None}
        return {"text": self.text, **given, "label": self.label}

    @model_validator(mode="before")
    @classmethod
    def _derive_format(cls, data: Any) -> Any:
        if isinstance(data, dict) and "format" not in data and isinstance(data.get("path"), str):
            derived = format_of(data["path"])
            if derived in {"csv", "jsonl", "parquet"}:
                return {**data, "format": derived}
            raise ValueError(
                f"the suffix of {data['path']!r} says nothing of the format; "
                "add format: csv, jsonl, parquet, conll or dataset"
            )
        return data

    @model_validator(mode="after")
    def _slices_have_a_column(self) -> Self:
        if self.slice_by is not None and self.format == "conll":
            raise ValueError("slice_by names a column, which format: conll has not; take jsonl")
        return self

    @model_validator(mode="after")
    def _every_split_comes_from_somewhere(self) -> Self:
        for name in ("validation", "test"):
            share, path = getattr(self.split, name), self.paths.get(name)
            if (share is None) == (path is None):
                raise ValueError(
                    f"say where {name} rows come from: either split.{name}, a share of the rows in "
                    f"path, or {name}_path, a file of their own"
                )
        return self


class TaskConfig(Schema):
    """One downstream task."""

    type: TaskType
    """`classification` labels a text, `regression` gives it a number, `token_classification` labels
    each of its words, `question_answering` finds the answer to a question in it, `generation`
    writes an answer to it."""

    multi_label: bool = False
    """A text has any number of the labels (`classification`)."""

    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None
    """Weight of each label in the loss (`classification`); `balanced` makes all count alike. With
    `multi_label`, of texts that have the label against those that do not."""

    data: TaskDataConfig
    """The labelled rows."""

    metric: Metric
    """What trials are ranked by and promotion is decided on."""

    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens kept of one text, or of both. For `question_answering` of one window: longer texts are
    read in several. For `generation` of text and answer together."""

    answer_length: PositiveInt = 32
    """Most tokens of an answer (`question_answering`, `generation`)."""

    @property
    def lower_is_better(self) -> bool:
        """Of the metric."""
        return self.metric in LOWER_IS_BETTER

    def merit(self, scores: Mapping[str, float]) -> float:
        """As `merit_of` the task's metric."""
        return merit_of(self.metric, scores)

    @model_validator(mode="after")
    def _metric_fits_type(self) -> Self:
        allowed = METRICS_OF_TASK[self.type]
        if self.multi_label:
            allowed = tuple(name for name in allowed if name != "matthews")
        if self.metric not in allowed:
            kind = "multi_label" if self.multi_label else f"type {self.type!r}"
            raise ValueError(
                f"metric {self.metric!r} does not go with {kind}; use {' or '.join(allowed)}"
            )
        return self

    @model_validator(mode="after")
    def _answers_fit_type(self) -> Self:
        writes, reads = (self.type == name for name in ("generation", "question_answering"))
        is_set = self.answer_length != type(self).model_fields["answer_length"].default
        if is_set and not (writes or reads):
            raise ValueError("answer_length goes with type: question_answering or generation")
        if reads and self.data.text_pair is None:
            raise ValueError(
                "type: question_answering needs data.text_pair, the column with the question; "
                "data.text is the one with the text that holds the answer"
            )
        least = 2 * self.answer_length
        if (writes or reads) and self.max_length < least:
            raise ValueError(
                f"max_length {self.max_length} is too short for answers of {self.answer_length} "
                f"tokens and what they answer: set at least {least}, or lower answer_length"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit_type(self) -> Self:
        of_words, of_classes = (
            self.type == name for name in ("token_classification", "classification")
        )
        data = self.data
        if data.format == "conll" and not of_words:
            raise ValueError("data.format conll goes with type: token_classification")
        if data.text_pair is not None and (of_words or self.type == "generation"):
            raise ValueError(f"data.text_pair does not go with type: {self.type}")
        for name, value in (
            ("multi_label", self.multi_label),
            ("class_weights", self.class_weights),
        ):
            if value and not of_classes:
                raise ValueError(f"{name} goes with type: classification")
        if data.label_separator is not None and not self.multi_label:
            raise ValueError("data.label_separator goes with multi_label: true")
        if data.split.stratify and (not of_classes or self.multi_label):
            raise ValueError(
                "data.split.stratify goes with type: classification and one label a text"
            )
        return self


class Hyperparameters(Schema):
    """One point of a fine-tuning search; every field may be a dimension of `search.space`."""

    method: Method = "full"
    """`full` trains all weights, `lora` low-rank adapters beside the frozen base's matrices and the
    new head, `head` the head alone. What `lora` trains is merged into the model that is kept."""

    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""

    epochs: PositiveInt = 4
    """Passes over the training rows."""

    batch_size: PositiveInt = 16
    """Rows in one optimizer step."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay on matrices."""

    schedule: Literal["linear", "constant", "wsd"] = "linear"
    """The rate after its warm-up: down to zero; as it is; or as it is, and down to zero in the last
    steps. With `constant` and `wsd`, trials that differ in `epochs`, `schedule` and `decay` alone
    are trained together as far as they go together."""

    decay: Share = 0.2
    """Share of all steps in which `wsd` goes down."""

    warmup: Fraction = 0.1
    """Share of steps in which the rate rises linearly from zero: of all steps with `linear`; else
    of those of one epoch, so that how it begins does not depend on how long it goes on."""

    dropout: Fraction = 0.1
    """Probability with which the network drops activations, where its family has dropout."""

    token_dropout: Fraction = 0.0
    """Share of training tokens replaced by the mask token: augmentation for few labels."""

    label_smoothing: Fraction = 0.0
    """Probability mass spread over the wrong labels."""

    prefix_loss: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the same loss at every prefix of the text: for classifiers that read left to right,
    whose features of each prefix are at hand. Many more examples from few labels."""

    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each layer's learning rate as a share of the layer above (arXiv:1801.06146, 2.3)."""

    frozen_layers: Annotated[int, Field(ge=0)] = 0
    """Layers that `full` leaves as they are, from below, the embeddings with them."""

    gradual_unfreezing: bool = False
    """Train the head in the first epoch, and one layer more from the top in each further one
    (`full`; arXiv:1801.06146, 3.3)."""

    lora_rank: PositiveInt = 8
    """Of `lora`'s adapters."""

    lora_alpha: PositiveInt = 16
    """`lora`'s adapters count alpha / rank."""

    lora_dropout: Fraction = 0.0
    """Of what goes into `lora`'s adapters."""

    seed: int = 0
    """Of head weights, data order and dropout."""
