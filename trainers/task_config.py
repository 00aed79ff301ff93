"""What the user may say about downstream tasks. Pure schemas: no torch, fast to load."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainers.config import WHERE, Fraction, PositiveFloat, PositiveInt, Schema, format_of

TaskType = Literal["classification", "token_classification"]
Metric = Literal["accuracy", "macro_f1", "entity_f1"]
Method = Literal["full", "head"]

METRICS_OF_TASK: dict[TaskType, tuple[Metric, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "token_classification": ("entity_f1", "accuracy"),
}


class SplitConfig(Schema):
    """A seeded split of a task's rows; rows with the same text fall on the same side."""

    test: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of rows sealed until the final evaluation."""

    validation: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of rows that search and selection may look at."""

    seed: int = 0
    """Of the split."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.test + self.validation >= 1.0:
            raise ValueError(f"test {self.test} + validation {self.validation} leave no rows")
        return self


class TaskDataConfig(Schema):
    """A task's labelled rows."""

    path: Annotated[str, WHERE]
    """One file of rows; relative to the pipeline file."""

    format: Literal["csv", "jsonl", "parquet", "conll"]
    """`conll` is word, tab, label per line with empty lines between sentences."""

    text: str = "text"
    """Column with the text, or with the list of words for token classification."""

    label: str = "label"
    """Column with the label, or with the list of labels for token classification."""

    encoding: str = "utf-8"
    """Text encoding of csv, jsonl and conll files."""

    split: SplitConfig
    """How rows are divided."""

    train_rows: PositiveInt | None = None
    """Use only this many labelled training rows, chosen by the split's seed; None is all."""

    @model_validator(mode="before")
    @classmethod
    def _derive_format(cls, data: Any) -> Any:
        if isinstance(data, dict) and "format" not in data and isinstance(data.get("path"), str):
            derived = format_of(data["path"])
            if derived in {"csv", "jsonl", "parquet"}:
                return {**data, "format": derived}
            raise ValueError(
                f"the suffix of {data['path']!r} says nothing of the format; "
                "add format: csv, jsonl, parquet or conll"
            )
        return data


class TaskConfig(Schema):
    """One downstream task."""

    type: TaskType
    """`classification` labels a text, `token_classification` each word of it."""

    data: TaskDataConfig
    """The labelled rows."""

    metric: Metric
    """What trials are ranked by and promotion is decided on; higher is better."""

    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens kept of one text."""

    @model_validator(mode="after")
    def _metric_fits_type(self) -> Self:
        allowed = METRICS_OF_TASK[self.type]
        if self.metric not in allowed:
            raise ValueError(
                f"metric {self.metric!r} does not go with type {self.type!r}; "
                f"use {' or '.join(allowed)}"
            )
        if self.data.format == "conll" and self.type != "token_classification":
            raise ValueError("data.format conll goes with type: token_classification")
        return self


class Hyperparameters(Schema):
    """One point of a fine-tuning search; every field may be a dimension of `search.space`."""

    method: Method = "full"
    """`full` trains all weights, `head` only the new classifier on a frozen base."""

    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""

    epochs: PositiveInt = 4
    """Passes over the training rows."""

    batch_size: PositiveInt = 16
    """Rows in one optimizer step."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay on matrices."""

    warmup: Fraction = 0.1
    """Share of steps in which the rate rises linearly from zero; then linear to zero."""

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

    seed: int = 0
    """Of head weights, data order and dropout."""
