"""The sections `promote:` of the pipeline file: when a new model replaces the champion."""

import math
from typing import Literal, Self

from pydantic import NonNegativeInt, model_validator

from trainers.config import Fraction, PositiveFloat, PositiveInt, Schema


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


class RuleConfig(Schema):
    """When a new model replaces the champion, both judged on the same rows."""

    mode: Literal["superior", "non_inferior"] = "superior"
    """Whether it must be better, or no more than `margin` worse: for a model that is wanted for
    another reason, such as its size."""

    min_improvement: Fraction = 0.0
    """With `superior`: it must be better by more than this."""

    margin: PositiveFloat | None = None
    """With `non_inferior`: how much worse it may be."""

    confidence: Fraction = 0.95
    """That this is no luck with these rows; 0 asks for no more than the score itself."""

    resamples: PositiveInt = 10_000
    """Draws of rows; for the interval of a gain, too."""

    seed: NonNegativeInt = 0
    """Of the draws."""

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
        return self

    @model_validator(mode="after")
    def _draws_suffice(self) -> Self:
        if self.is_drawn and (self.resamples + 1) * (1.0 - self.confidence) < 1.0:
            raise ValueError(
                f"resamples {self.resamples} can never give a confidence of {self.confidence}; "
                f"take {math.ceil(1.0 / (1.0 - self.confidence))} or more"
            )
        return self

    @property
    def is_drawn(self) -> bool:
        """Whether p comes from draws."""
        return True


class PromoteConfig(RuleConfig):
    """When a new model of a task replaces the champion: test rows, the metric of the task."""

    test: Literal["bootstrap", "randomization", "mcnemar"] = "bootstrap"
    """Of significance: the paired bootstrap; approximate randomisation; McNemar's exact test, for
    accuracy alone. The latter two know no least improvement and no margin."""

    guards: GuardsConfig = GuardsConfig()
    """What it must keep to beside that."""

    @model_validator(mode="after")
    def _test_knows_the_bound(self) -> Self:
        if self.test != "bootstrap" and (self.min_improvement or self.margin):
            raise ValueError(
                f"test {self.test} asks whether there is any gain; with min_improvement or margin "
                "use bootstrap"
            )
        return self

    @property
    def is_drawn(self) -> bool:
        """Whether p comes from draws."""
        return self.test != "mcnemar"


class PromoteBaseConfig(RuleConfig):
    """When a newly pretrained model replaces the champion of `<name>.base`.

    Both are judged on the same held-out documents, the rows here: by bits per byte with the causal
    objective, by nats per hidden token with the masked one.
    """

    documents: PositiveInt = 2000
    """Most held-out documents that are read, chosen by a hash of the text."""

    characters: PositiveInt = 2048
    """Of a document no more than these are read, from its beginning."""
