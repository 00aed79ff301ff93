"""Tune's searchers and schedulers for a plan, with the memory of what was tried before."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import optuna
from ray import tune
from ray.tune import Stopper
from ray.tune.result import TIME_THIS_ITER_S, TIME_TOTAL_S
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import (
    BasicVariantGenerator,
    ConcurrencyLimiter,
    SearchAlgorithm,
    Searcher,
)
from ray.tune.search.optuna import OptunaSearch

from cluster import space
from cluster.interface import SearchPlan, TrialResult
from cluster.point_list import PointList
from cluster.results import EPOCH, ERROR, FINISHED, POINT, SCORE, WORST_SCORE
from cluster.space import Dimension, Point, Range, Space

slots: ContextVar[Callable[[], int]] = ContextVar("slots")
"""Of the search that runs. Not a field of a searcher: Tune keeps searchers with a search's state,
and one that goes on would ask for the slots of the run that was interrupted."""

_MODE = "max"
_STUDY = "optuna"
_SEEDS = 2**32
_PRIME = 1_000_003
_FAILURES_IN_A_ROW = 10
"""Of trials, after which none is waited for: where all fail, time must end the search."""
_RESAMPLE = 0.25
_FACTORS = (0.8, 1.25)


def param_space(plan: SearchPlan) -> dict[str, Any]:
    """What Tune itself goes through: nothing, but for PBT, which goes with no searcher."""
    return {POINT: tune.grid_search(plan.points())} if plan.search.scheduler == "pbt" else {}


def searcher(plan: SearchPlan) -> Searcher | SearchAlgorithm:
    """Chooses the points; Optuna's knows those of earlier trials, and what they scored."""
    search = plan.search
    if search.searcher != "tpe":
        if search.scheduler == "pbt":  # it compares all, which take turns in the slots there are
            return BasicVariantGenerator(max_concurrent=plan.trials)
        # Without the limiter around it Tune would begin one trial after another.
        return _AsManyAsFit(PointList(plan.points(), plan.course), max_concurrent=plan.trials)
    suggestions = _Suggestions(search.space)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=_STUDY, direction="maximize")
    for trial in plan.earlier:
        study.add_trial(suggestions.remembered(trial.hyperparameters, _last_score(plan, trial)))
    first = [] if plan.earlier else [suggestions.asked_for(point) for point in plan.first]
    found = OptunaSearch(
        suggestions,
        metric=SCORE,
        mode=_MODE,
        storage=storage,
        study_name=_STUDY,
        points_to_evaluate=[point for point in first if point],
        # Of the same seed it would draw the first trials' points again.
        seed=(search.seed + _PRIME * len(plan.earlier)) % _SEEDS,
    )
    return _AsManyAsFit(found, max_concurrent=plan.trials)


class _AsManyAsFit(ConcurrencyLimiter):  # type: ignore[misc]
    """Has as many trials under way as there are slots; `max_concurrent` is the most ever.

    A further slot is a process that must start, which Tune waits for at the end of a search even
    where nothing is left for it: none is opened where those there are will be done before.
    """

    def __init__(self, searcher: Searcher, *, max_concurrent: int) -> None:
        super().__init__(searcher, max_concurrent=max_concurrent)
        self._slots = self._begun = self._ended = 0
        """Slots opened so far; trials."""
        self._opened_at: dict[str, float] = {}
        """When trials that opened a slot began."""
        self._start_s = self._trained_s = 0.0
        """The longest start of a slot; time of all trials that have ended."""

    def suggest(self, trial_id: str) -> Any:
        """A point, if there is a slot for it."""
        live = len(self.live_trials)
        if live >= slots.get()() or (live >= self._slots and not self._pays_off()):
            return None
        found = super().suggest(trial_id)
        if isinstance(found, dict):
            self._begun += 1
            if live >= self._slots:
                self._slots = live + 1
                self._opened_at[trial_id] = time.monotonic()
        return found

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on with what another driver left: its slots are closed, and its clock was another."""
        super().set_state({**state, "_slots": 0, "_opened_at": {}})

    def _pays_off(self) -> bool:
        """Whether a slot more would be ready before the others have begun the last trial."""
        if not self._ended or not self._slots:
            return True
        left = self.max_concurrent - self._begun
        return bool(left * self._trained_s / self._ended / self._slots > self._start_s)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Learn how long a slot takes to start."""
        opened_at = self._opened_at.pop(trial_id, None)
        if opened_at is not None:
            start_s = time.monotonic() - opened_at - result[TIME_THIS_ITER_S]
            self._start_s = max(self._start_s, start_s)
        super().on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn how long a trial takes."""
        self._opened_at.pop(trial_id, None)
        if result and TIME_TOTAL_S in result:
            self._ended += 1
            self._trained_s += result[TIME_TOTAL_S]
        super().on_trial_complete(trial_id, result=result, error=error)


def scheduler(plan: SearchPlan) -> TrialScheduler:
    """Stops trials early; it has seen every epoch of the earlier ones."""
    search = plan.search
    common = {"time_attr": EPOCH, "metric": SCORE, "mode": _MODE}
    match search.scheduler:
        case "none":
            return FIFOScheduler()
        case "median":
            median = _MedianRule(**common, grace_period=search.grace_epochs)
            for trial, result in _seen(plan):
                median.on_trial_complete(None, trial, result)  # which only keeps it
            return median
        case "pbt":
            return PopulationBasedTraining(
                **common,
                perturbation_interval=search.perturb_epochs,
                custom_explore_fn=_Explorer(search.space, plan.may_change, search.seed),
                log_config=False,
            )
        case "asha":
            asha = ASHAScheduler(
                **common,
                max_t=plan.max_epochs,
                grace_period=min(search.grace_epochs, plan.max_epochs),
                reduction_factor=search.reduction_factor,
            )
            for trial, result in _seen(plan):
                asha.on_trial_add(None, trial)
                asha.on_trial_result(None, trial, result)
            return asha


class _MedianRule(MedianStoppingRule):  # type: ignore[misc]
    """Tune's, for trials that are never paused and may be told of an epoch again."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As Tune's; an epoch counts once."""
        told = self._results[trial]
        if told and result[EPOCH] <= told[-1][EPOCH]:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(controller, trial, result))

    def _on_insufficient_samples(self, *_: Any) -> str:
        return str(TrialScheduler.CONTINUE)


@dataclass(frozen=True)
class _Seen:
    """What schedulers ask of a trial that they are told of."""

    trial_id: str


def stopper(plan: SearchPlan) -> Stopper | None:
    """Ends the search when its time is over."""
    search = plan.search
    if search.max_hours is None:
        return None
    finished = sum(trial.status == "finished" for trial in plan.earlier)
    return Deadline(search.max_hours * 3600, search.least_trials - finished)


class Deadline(Stopper):  # type: ignore[misc]
    """Ends a search when its time is over and enough trials have finished, or only failed."""

    def __init__(self, seconds: float, least: int) -> None:
        self._seconds, self._least = seconds, least
        self._failed = 0
        self._ends_at: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count what has finished; end no single trial."""
        self._least -= bool(result[FINISHED])
        self._failed = 0 if result[FINISHED] else self._failed + bool(result[ERROR])
        return False

    def stop_all(self) -> bool:
        """Whether the search is over."""
        now = time.monotonic()
        if self._ends_at is None:  # the search has just begun
            self._ends_at = now + self._seconds
        is_waiting = self._least > 0 and self._failed < _FAILURES_IN_A_ROW
        return now >= self._ends_at and not is_waiting

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ends_at": None}  # another process has another clock


def _seen(plan: SearchPlan) -> Iterator[tuple[_Seen, dict[str, Any]]]:
    """Every epoch of earlier trials, as Tune tells it."""
    for trial in plan.earlier:
        for epoch, metrics in enumerate(trial.history, start=1):
            yield _Seen(trial.trial_id), {EPOCH: epoch, SCORE: _score(plan, metrics)}


def _score(plan: SearchPlan, metrics: dict[str, float]) -> float:
    value = metrics.get(plan.metric, math.nan)
    if not math.isfinite(value):
        return WORST_SCORE
    return -value if plan.lower_is_better else value


def _last_score(plan: SearchPlan, trial: TrialResult) -> float:
    failed = trial.status == "failed" or not trial.history
    return WORST_SCORE if failed else _score(plan, trial.history[-1])


class _Explorer:
    """Changes a point a little, or draws anew, within the space. Source: arXiv:1711.09846, 4.1."""

    def __init__(self, space: Space, may_change: Sequence[str], seed: int) -> None:
        self._space, self._may_change = space, may_change
        self._random = random.Random(seed)

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """Tune's configuration of the trial that is gone on from, changed."""
        point = dict(config[POINT])
        for _, name, dimension, branch in space.dimensions(self._space):
            is_of_point = all(point.get(key) == choice for key, choice in branch.items())
            if name in self._may_change and name in point and is_of_point:
                point[name] = self._changed(dimension, point[name])
        return {**config, POINT: point}

    def _changed(self, dimension: Dimension, value: Any) -> Any:
        if self._random.random() < _RESAMPLE:
            return space.at(dimension, self._random.random())
        if isinstance(dimension, list):
            place = dimension.index(value) + self._random.choice((-1, 1))
            return dimension[min(max(place, 0), len(dimension) - 1)]
        if not isinstance(dimension, Range):
            return dimension
        low, high = dimension.bounds
        return space.nearest(dimension, min(max(value * self._random.choice(_FACTORS), low), high))


@dataclass(frozen=True)
class _Suggestions:
    """A search space as Optuna asks for it: one value after another, of the branch it is in."""

    space: Space

    def __call__(self, trial: Any) -> dict[str, Any]:
        """A point that the sampler suggests."""

        def pick(name: str, dimension: Dimension) -> Any:
            match dimension:
                case Range(uniform=(low, high)):
                    return trial.suggest_float(name, low, high)
                case Range(loguniform=(low, high)):
                    return trial.suggest_float(name, low, high, log=True)
                case Range(quniform=(low, _, step)):
                    number = trial.suggest_int(name, 0, space.steps(dimension) - 1)
                    return space.stepped(low, step, number)
                case Range(randint=(low, high)):
                    return trial.suggest_int(name, low, high)
                case list():
                    return trial.suggest_categorical(name, dimension)
            return dimension

        return {POINT: space.point(self.space, pick)}

    def asked_for(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """What the space can take of a point, as Optuna calls it."""
        found = space.taken(self.space, other)
        for place, _, dimension, _ in space.dimensions(self.space):
            if place in found and isinstance(dimension, Range) and dimension.quniform:
                low, _, step = dimension.quniform
                found[place] = round((found[place] - low) / step)
        return found

    def remembered(self, point: Point, score: float) -> optuna.trial.FrozenTrial:
        """A trial of this space that was run before."""
        fixed = optuna.trial.FixedTrial(self.asked_for(point))
        self(fixed)
        return optuna.trial.create_trial(
            params=fixed.params, distributions=fixed.distributions, value=score
        )
