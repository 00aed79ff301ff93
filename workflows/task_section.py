"""A task's section of the pipeline file: what is searched, trained again, compared, promoted."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cluster import space
from cluster.config import SearchConfig
from trainers.config import PositiveInt, Schema
from trainers.task_config import (
    MAY_CHANGE,
    METHODS_OF_HYPERPARAMETER,
    METHODS_OF_TASK,
    SCHEDULES_OF_HYPERPARAMETER,
    UNUSED_OF_TASK,
    Hyperparameters,
    TaskConfig,
)
from workflows.promote_config import PromoteConfig
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


class PipelineTask(TaskConfig):
    """A downstream task with its search, final training and promotion."""

    base: Literal["last", "best_probe"] = "last"
    """The end of pretraining, or the model on its way above which a head was best (`probe`)."""

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
