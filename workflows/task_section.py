"""A task's section of the pipeline file: what is searched, trained again, compared, promoted."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from cluster import space
from cluster.config import SearchConfig
from trainers.config import Fraction, PositiveFloat, PositiveInt, Schema
from trainers.task_config import (
    MAY_CHANGE,
    METHODS_OF_HYPERPARAMETER,
    METHODS_OF_TASK,
    SCHEDULES_OF_HYPERPARAMETER,
    UNUSED_OF_TASK,
    Hyperparameters,
    TaskConfig,
)
from workflows.suggestions import suggestion


class FinalConfig(Schema):
    """What is trained again after the search, and how often."""

    top: PositiveInt = 1
    """Best trials trained again; the choice between them is by their validation mean."""

    seeds: PositiveInt = 3
    """Trainings of each, with seeds 0, 1, ..."""


class ControlsConfig(Schema):
    """Trainings that show what the base model was worth."""

    scratch: bool = False
    """Train the same network from random weights with the same budget."""

    scratch_learning_rates: Annotated[list[float], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Learning rates tried for it, as multiples of the chosen one; the best by validation."""

    label_fractions: list[Annotated[float, Field(gt=0.0, le=1.0)]] = []
    """Shares of the training rows with which the chosen configuration, and the control, are trained
    again, with each seed: what transfer is worth when labels are few."""


class LatencyConfig(Schema):
    """How long a model may take to answer, on what one worker of a trial is given."""

    batch_size: PositiveInt = 1
    """Rows that it is asked about together."""

    p50_ms: PositiveFloat | None = None
    """Median, from texts to labels."""

    p95_ms: PositiveFloat | None = None
    """95th percentile."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.p50_ms is None and self.p95_ms is None:
            raise ValueError("give p50_ms, p95_ms, or both")
        return self


class GuardsConfig(Schema):
    """What a new model must keep to beside being better."""

    size_mb: PositiveFloat | None = None
    """Its files, in millions of bytes."""

    latency: LatencyConfig | None = None
    """How long it may take."""

    calibration_error: PositiveFloat | None = None
    """Expected calibration error on the test rows, for `classification` with one label a row."""

    worst_slice: float | None = None
    """The task's metric on the test rows of each slice (`data.slice_by`) with 20 rows or more."""

    seed_spread: PositiveFloat | None = None
    """Standard deviation of the test metric over `final.seeds`."""


class PromoteConfig(Schema):
    """When a new model replaces the champion, on the same test rows."""

    mode: Literal["superior", "non_inferior"] = "superior"
    """Whether it must be better, or no more than `margin` worse: for a model that is wanted for
    another reason, such as its size."""

    min_improvement: Fraction = 0.0
    """With `superior`: the test metric must be better by more than this."""

    margin: PositiveFloat | None = None
    """With `non_inferior`: how much worse the test metric may be."""

    confidence: Fraction = 0.95
    """That this is no luck with these rows; 0 asks for no more than the score itself."""

    test: Literal["bootstrap", "randomization", "mcnemar"] = "bootstrap"
    """Of significance: the paired bootstrap; approximate randomisation; McNemar's exact test, for
    accuracy alone. The latter two know no least improvement and no margin."""

    resamples: PositiveInt = 10_000
    """Draws of test rows; for the interval of a gain, too."""

    seed: NonNegativeInt = 0
    """Of the draws."""

    guards: GuardsConfig = GuardsConfig()
    """What it must keep to beside that."""

    approve: Literal["automatic", "manual"] = "automatic"
    """Whether what is proved becomes champion at once, or is the `candidate` until a person says
    `pretune models promote`."""

    @model_validator(mode="after")
    def _mode_has_its_bound(self) -> Self:
        if self.mode == "non_inferior" and self.margin is None:
            raise ValueError("mode non_inferior needs a margin: how much worse the model may be")
        if self.mode == "superior" and self.margin is not None:
            raise ValueError("margin goes with mode: non_inferior; with superior leave it out")
        if self.mode == "non_inferior" and self.min_improvement:
            raise ValueError("min_improvement goes with mode: superior; with non_inferior drop it")
        if self.test != "bootstrap" and (self.min_improvement or self.margin):
            raise ValueError(
                f"test {self.test} asks whether there is any gain; with min_improvement or margin "
                "use bootstrap"
            )
        return self

    @model_validator(mode="after")
    def _draws_suffice(self) -> Self:
        if self.test != "mcnemar" and (self.resamples + 1) * (1.0 - self.confidence) < 1.0:
            raise ValueError(
                f"resamples {self.resamples} can never give a confidence of {self.confidence}; "
                f"take {math.ceil(1.0 / (1.0 - self.confidence))} or more"
            )
        return self


class PipelineTask(TaskConfig):
    """A downstream task with its search, final training and promotion."""

    search: SearchConfig
    """Fine-tuning trials."""

    final: FinalConfig = FinalConfig()
    """Training again, choice and test."""

    controls: ControlsConfig = ControlsConfig()
    """Comparisons for the report."""

    promote: PromoteConfig = PromoteConfig()
    """The rule of promotion."""

    @model_validator(mode="after")
    def _population_can_change(self) -> Self:
        if self.search.scheduler != "pbt":
            return self
        if len(set(self.values_of("epochs"))) > 1:
            raise ValueError("search.space.epochs: scheduler pbt needs one value for all trials")
        if self.search.perturb_epochs >= self.max_epochs:
            raise ValueError(
                f"search.perturb_epochs {self.search.perturb_epochs}: scheduler pbt would compare "
                f"nothing in {self.max_epochs} epochs; lower it, or raise epochs"
            )
        tried = {
            name
            for _, name, dimension, _ in space.dimensions(self.search.space)
            if len(set(space.values(dimension))) > 1
        }
        if not tried & set(MAY_CHANGE):
            raise ValueError(
                "search.space: scheduler pbt changes hyperparameters on the way; give "
                f"{', '.join(MAY_CHANGE)} more than one value, or one of them"
            )
        return self

    @model_validator(mode="after")
    def _test_goes_with_metric(self) -> Self:
        is_share = self.metric in ("accuracy", "exact_match")
        if self.promote.test == "mcnemar" and (not is_share or self.type == "token_classification"):
            raise ValueError(
                f"promote.test: mcnemar compares rows that are right or wrong, and {self.metric} "
                f"of type {self.type} is no share of those; use bootstrap"
            )
        return self

    @model_validator(mode="after")
    def _guards_have_what_they_measure(self) -> Self:
        guards = self.promote.guards
        has_one_label = self.type == "classification" and not self.multi_label
        if guards.calibration_error is not None and not has_one_label:
            raise ValueError(
                "promote.guards.calibration_error is of the probability of one label a row, as "
                "type: classification has it; leave it out"
            )
        if guards.worst_slice is not None and self.data.slice_by is None:
            raise ValueError("promote.guards.worst_slice: name the slices' column, data.slice_by")
        if guards.seed_spread is not None and self.final.seeds < 2:
            raise ValueError("promote.guards.seed_spread needs final.seeds of 2 or more")
        return self

    @model_validator(mode="after")
    def _fractions_differ(self) -> Self:
        fractions = self.controls.label_fractions
        if len(set(fractions)) < len(fractions):
            raise ValueError("controls.label_fractions: a share stands there twice; drop one")
        return self

    @model_validator(mode="after")
    def _space_is_of_hyperparameters(self) -> Self:
        for place, name, dimension, branch in space.dimensions(self.search.space):
            values = space.values(dimension)
            if name not in Hyperparameters.model_fields:
                raise ValueError(
                    f"search.space.{place}: no such hyperparameter"
                    f"{suggestion(name, Hyperparameters.model_fields)}"
                )
            for value in values:
                _check_hyperparameter(place, name, value)
            if name in UNUSED_OF_TASK[self.type] and any(values):
                reason = UNUSED_OF_TASK[self.type][name]
                raise ValueError(
                    f"search.space.{place} does nothing with type {self.type}: {reason}"
                )
            self._check_goes_with("method", METHODS_OF_HYPERPARAMETER, place, name, branch)
            self._check_goes_with("schedule", SCHEDULES_OF_HYPERPARAMETER, place, name, branch)
        return self

    @model_validator(mode="after")
    def _methods_go_with_type(self) -> Self:
        for method in self.values_of("method"):
            if method not in METHODS_OF_TASK[self.type]:
                raise ValueError(
                    f"search.space: method {method} does not go with type {self.type}, whose head "
                    f"is the base's own; use {' or '.join(METHODS_OF_TASK[self.type])}"
                )
        return self

    def _check_goes_with(
        self,
        choice: str,
        table: Mapping[str, Sequence[str]],
        place: str,
        name: str,
        branch: space.Point,
    ) -> None:
        """Refuse what goes with none of the choices (methods, schedules) that are tried with it."""
        wanted = table.get(name)
        tried = [branch[choice]] if choice in branch else self.values_of(choice)
        if wanted is not None and not set(wanted) & set(tried):
            raise ValueError(
                f"search.space.{place} goes with {choice}: {' or '.join(wanted)}; "
                f"the search tries {', '.join(map(str, tried))}"
            )

    def values_of(self, hyperparameter: str) -> list[Any]:
        """Values that a hyperparameter takes in the search, in any branch."""
        found = [
            value
            for _, name, dimension, _ in space.dimensions(self.search.space)
            if name == hyperparameter
            for value in space.values(dimension)
        ]
        if hyperparameter in self.search.space:
            return found
        return [*found, getattr(Hyperparameters(), hyperparameter)]

    @property
    def task(self) -> TaskConfig:
        """The task alone, without how it is searched."""
        return TaskConfig(**{name: getattr(self, name) for name in TaskConfig.model_fields})

    @property
    def max_epochs(self) -> int:
        """The longest a trial may train."""
        return int(max(self.values_of("epochs")))


def _check_hyperparameter(place: str, name: str, value: Any) -> None:
    try:
        Hyperparameters.model_validate({name: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"search.space.{place}: {message} (got {value!r})") from None
