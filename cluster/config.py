"""Where things run and how hyperparameters are searched. Pure schemas: no Ray, fast to load."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from cluster.schema import PositiveFloat, PositiveInt, Schema
from cluster.space import Point, Range, Space, dimensions, drawn, grid, with_ranges

POPULATION = 4
"""Trials of the least population: a quarter of it is one."""
_MANY = 1000
"""Trials of a search that only its time ends."""


class WorkerConfig(Schema):
    """What one process is given."""

    cpus: PositiveInt = 1
    """CPU cores, and threads, of one process."""

    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs of one process; a fraction shares one."""


class WorkerRange(Schema):
    """As many workers as there is room for, within bounds."""

    min: PositiveInt
    """With fewer, training waits for more."""

    max: PositiveInt
    """More are not used."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


def _number_or_range(value: Any) -> str:
    """Pydantic then tells what is wrong with the one that was meant, and nothing of the other."""
    return "WorkerRange" if isinstance(value, dict | WorkerRange) else "constrained-int"


Workers = Annotated[
    Annotated[PositiveInt, Tag("constrained-int")] | Annotated[WorkerRange, Tag("WorkerRange")],
    Discriminator(_number_or_range),
]


class GangConfig(WorkerConfig):
    """Processes that train one model together."""

    workers: Workers = 1
    """Processes; each holds one rank. A number, or `{min: 1, max: 4}`: training goes on with fewer
    when nodes go, and with more when they come."""

    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Sequences of one forward pass on one worker. `auto` begins with a worker's whole share of the
    global batch and halves it when memory does not suffice. The global batch stays the same."""

    hang_after_s: PositiveFloat = 120.0
    """Least seconds without a step after which a rank counts as hung and is ended; where steps are
    slow, ten times the slowest recent one."""

    @property
    def least_workers(self) -> int:
        """With fewer, nothing is trained."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def most_workers(self) -> int:
        """More are not used."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    device_memory_gb: PositiveFloat | None = None
    """Memory of one GPU, or of one worker's share of a machine, in GB; with it `plan` warns of what
    cannot fit."""


class TrialConfig(WorkerConfig):
    """What one fine-tuning training is given."""

    workers: PositiveInt = 1
    """Processes that train one model together, each with `cpus` and `gpus`: for models that are too
    large for one GPU. Then DeepSpeed spreads every trial over them."""

    zero_stage: Literal[0, 1, 2, 3] = 3
    """ZeRO stage of several workers; 3 shards the weights, too."""

    hang_after_s: PositiveFloat = 120.0
    """As of `GangConfig`, of several workers, with forward passes for steps."""

    @property
    def gang(self) -> GangConfig:
        """The workers, where there are several."""
        return GangConfig(cpus=self.cpus, gpus=self.gpus, workers=self.workers)

    @model_validator(mode="after")
    def _ranks_have_whole_gpus(self) -> Self:
        if self.workers > 1 and self.gpus % 1:
            raise ValueError(
                f"{self.workers} workers of one trial need whole GPUs (got gpus: {self.gpus:g}); a "
                "trial that shares a GPU has workers: 1"
            )
        return self


class RetryConfig(Schema):
    """What happens when the cluster, not the code, breaks a step."""

    max_attempts: PositiveInt = 3
    """Times a step, a gang or a trial is started before it counts as failed."""

    delay_s: Annotated[float, Field(ge=0.0)] = 2.0
    """Pause before the second attempt; doubles with each further one. A gang starts again without:
    its new processes take longer."""


class StepConfig(Schema):
    """Exceptions for one step."""

    timeout_s: PositiveFloat | None = None
    """Seconds an attempt may take; then it is ended and the step has failed."""

    retry: RetryConfig | None = None
    """Instead of `cluster.retry`."""


class ClusterConfig(Schema):
    """Where the pipeline runs. No part of any identity."""

    address: str | None = None
    """A running Ray cluster (`host:port` or `auto`); absent, a local Ray is started and ended."""

    pretrain: GangConfig = GangConfig()
    """The workers of pretraining."""

    trials: TrialConfig = TrialConfig()
    """One fine-tuning trial."""

    shards: WorkerConfig = WorkerConfig()
    """One process that reads, cleans or tokenises a shard of the corpus."""

    retry: RetryConfig = RetryConfig()
    """Retries of what the cluster broke."""

    steps: dict[str, StepConfig] = {}
    """Time limits and retries by the step's name, as `pretune plan` shows it."""

    wait_for_nodes_s: Annotated[float, Field(ge=0.0)] = 0.0
    """Seconds that a run waits for nodes when the cluster is too small for it, as one that grows
    may be; with none it fails at once."""

    lease_s: PositiveFloat = 60.0
    """Without a sign of life for so long, another run takes a step over."""

    stop_grace_s: Annotated[float, Field(ge=0.0)] = 60.0
    """Seconds that pretraining is given to save a checkpoint when the run is stopped."""

    def retry_of(self, step: str) -> RetryConfig:
        """How a step is tried again."""
        found = self.steps.get(step)
        return (found.retry if found else None) or self.retry

    def timeout_of(self, step: str) -> float | None:
        """Seconds that an attempt at a step may take; None where there is no limit."""
        found = self.steps.get(step)
        return found.timeout_s if found else None

    @model_validator(mode="after")
    def _no_ray_client(self) -> Self:
        if self.address and self.address.startswith("ray://"):
            raise ValueError(
                "ray:// (Ray Client) cannot run Ray Train or Tune, and a laptop that sleeps would "
                "end the run; drop cluster.address and submit to the cluster's dashboard: pretune "
                "submit PIPELINE.yaml --address http://head:8265"
            )
        return self


class SearchConfig(Schema):
    """A search over hyperparameters: which points, and which are given up early."""

    trials: PositiveInt = _MANY
    """Configurations to try; with `max_hours` alone, as many as there is time for."""

    max_hours: PositiveFloat | None = None
    """Then the search ends, with those trials that finished; it counts anew when a search that was
    interrupted goes on."""

    least_trials: PositiveInt = 1
    """Trials that `max_hours` waits for, until they have finished."""

    searcher: Literal["random", "grid", "tpe"] = "random"
    """`grid` tries all combinations of the lists in `space`; `tpe` is Optuna's tree-structured
    Parzen estimator."""

    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    """`asha` stops trials that fall behind at its rungs (arXiv:1810.05934), `median` those whose
    best is below the median of the others' means so far (Golovin et al. 2017, Google Vizier);
    `pbt` has the worst go on from the best, with hyperparameters changed (arXiv:1711.09846)."""

    perturb_epochs: PositiveInt = 1
    """Epochs after which `pbt` compares its trials."""

    grace_epochs: PositiveInt = 1
    """Epochs every trial may run; ASHA's first rung."""

    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """ASHA keeps one in this many trials at each rung."""

    space: Space = {}
    """By hyperparameter: a range, a list of choices, one value, or choices with the hyperparameters
    that go with each."""

    seed: int = 0
    """Of the searcher."""

    warm_start: list[str] = []
    """Tasks whose best configurations are tried first; this search waits for theirs."""

    def points(self, first: Sequence[Mapping[str, Any]] = ()) -> list[Point]:
        """What `grid` and `random` try, in this order; more random trials begin with the same."""
        if self.searcher == "grid":
            return grid(self.space)
        return drawn(self.space, self.trials, self.seed, first)

    @model_validator(mode="before")
    @classmethod
    def _ranges_first(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("space"), dict):
            return {**data, "space": with_ranges(data["space"])}
        return data

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        for name, schedulers in (
            ("grace_epochs", ("asha", "median")),
            ("reduction_factor", ("asha",)),
            ("perturb_epochs", ("pbt",)),
        ):
            if self.scheduler not in schedulers and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} goes with scheduler: {' or '.join(schedulers)}")
        if self.max_hours is None and "trials" not in self.model_fields_set:
            raise ValueError("give trials, or max_hours, or both")
        if self.max_hours is None and self.least_trials != defaults["least_trials"]:
            raise ValueError("least_trials goes with max_hours")
        for place, name, _, branch in dimensions(self.space):
            if branch and name in self.space:
                raise ValueError(f"space.{place}: {name} stands beside the choices, too; drop one")
        if self.scheduler == "pbt":
            if self.searcher == "tpe":
                raise ValueError("scheduler pbt changes points on its way; take searcher: random")
            if "trials" not in self.model_fields_set or self.trials < POPULATION:
                raise ValueError(f"scheduler pbt compares: set trials to {POPULATION} at least")
        if self.searcher == "grid":
            if self.warm_start:
                raise ValueError("warm_start goes with searcher: random or tpe; grid tries all")
            self._check_grid()
        return self

    def _check_grid(self) -> None:
        ranges = [
            place for place, _, value, _ in dimensions(self.space) if isinstance(value, Range)
        ]
        if ranges:
            raise ValueError(
                f"searcher grid tries lists of values; space.{ranges[0]} is a range: list its "
                "values, or take searcher: random or tpe"
            )
        points = len(grid(self.space))
        if self.trials != points:
            raise ValueError(f"searcher grid tries all {points} points of the space: set trials")
