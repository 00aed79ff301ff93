"""After the search: train the best again, choose by validation, open the test split once."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from trainers import baselines, task_data
from trainers import predictions as written
from trainers.examples import Examples
from trainers.retraining import SavedModel, Training
from trainers.task_config import MAY_CHANGE, Hyperparameters, Metric, merit_of
from trainers.task_types import TaskType, type_of
from workflows.execution import StageContext
from workflows.openings import open_test
from workflows.pipeline import FinalSpec
from workflows.trainings import Trained, again, all_tested, planned, train_all

TRIALS = "trials.json"
RESULT = "final.json"
MODEL = "model"

_SHARE_OF_OTHERS = 0.1
"""Of a learning rate that is good for adapters or a head, what is good for all weights."""


Trial = Mapping[str, Any]
"""A `cluster.interface.TrialResult` as it stands in `trials.json`."""


class NoTrialFinishedError(RuntimeError):
    """A search ended without one usable configuration."""


def run(context: StageContext) -> Mapping[str, Any]:
    """The chosen model in `model/`, with its test predictions; all scores in `final.json`."""
    spec = context.spec(FinalSpec)
    seeds = range(spec.final.seeds)
    trials = json.loads((context.input("tune") / TRIALS).read_text(encoding="utf-8"))
    top = finished(trials, spec.task.metric)[: spec.final.top]
    plans = [_plan_of_trial(context, trial, seed) for trial in top for seed in seeds]
    usual = Hyperparameters.model_validate(last_point(top[0]))
    scratch_points = _scratch_points(spec, usual, trials)
    # The control's learning rate is chosen with one seed, at the same time.
    first = [planned(context, point, 0, from_scratch=True) for point in scratch_points]
    trained = train_all(context, [*plans, *first])

    candidates = _of_best_mean(trained[: len(plans)], spec.final.seeds)
    chosen = max(candidates, key=lambda one: one.merit)
    controls = []
    if first:
        winner = max(trained[len(plans) :], key=lambda one: one.merit)
        point = winner.training.hyperparameters
        others = [planned(context, point, seed, from_scratch=True) for seed in seeds[1:]]
        controls = [winner, *train_all(context, others)]
    fewer = _with_fewer_labels(context, spec, chosen, controls)
    result = _opened_test(context, chosen, candidates, controls, fewer)
    result["search"] = _optimism(trials, spec.task.metric, candidates)
    (context.output / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    context.exchange().collect(chosen.training.output)
    shutil.move(chosen.training.output, context.output / MODEL)
    for path in context.output.glob("*.parquet"):
        shutil.move(path, context.output / MODEL)
    told = ("hyperparameters", "test", "validation", "seeds", "label_fractions")
    return {name: result[name] for name in told}


def ranked(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Best first by the last epoch on the validation rows."""

    def last(trial: Trial) -> float:
        return merit_of(metric, trial["history"][-1]) if trial["history"] else -math.inf

    return sorted(trials, key=last, reverse=True)


def last_point(trial: Trial) -> Mapping[str, Any]:
    """What a trial's hyperparameters were in the end."""
    changes: Sequence[tuple[int, Mapping[str, Any]]] = trial.get("changes") or ()
    found: Mapping[str, Any] = changes[-1][1] if changes else trial["hyperparameters"]
    return found


def finished(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Those that trained to their last epoch, best first.

    Raises:
        NoTrialFinishedError: there is none; tells what ended them.
    """
    found = [trial for trial in ranked(trials, metric) if trial["status"] == "finished"]
    if not found:
        told = sorted({trial["error"] for trial in trials if trial["error"]})
        errors = "; ".join(told) or "all were stopped before; raise search.max_hours"
        raise NoTrialFinishedError(f"none of {len(trials)} trials finished: {errors}")
    return found


def _scratch_points(
    spec: FinalSpec, point: Hyperparameters, trials: Sequence[Trial]
) -> list[Hyperparameters]:
    """The best point with each learning rate the control may choose; random weights train whole.

    So where another method won, its rate is no measure: that of the best trial of all weights is,
    or a tenth where there was none (Biderman et al. 2024, arXiv:2405.09673, 5.1).
    """
    if not spec.controls.scratch:
        return []
    found = (
        Hyperparameters.model_validate(last_point(one)) for one in ranked(trials, spec.task.metric)
    )
    share = 1.0 if point.method == "full" else _SHARE_OF_OTHERS
    usual = next(
        (one.learning_rate for one in found if one.method == "full"), share * point.learning_rate
    )
    return [
        point.model_copy(
            update={
                "method": "full",
                "layer_decay": 1.0,
                "frozen_layers": 0,
                "gradual_unfreezing": False,
                "learning_rate": usual * multiple,
            }
        )
        for multiple in spec.controls.scratch_learning_rates
    ]


def _with_fewer_labels(
    context: StageContext, spec: FinalSpec, chosen: Trained, controls: Sequence[Trained]
) -> list[Trained]:
    """The chosen configuration, and the control, with each share of the labels and each seed."""
    plans = [
        replace(again(context, training, seed), label_fraction=fraction)
        for fraction in spec.controls.label_fractions
        if fraction < 1.0
        for training in (chosen.training, *(one.training for one in controls[:1]))
        for seed in range(spec.final.seeds)
    ]
    return train_all(context, plans) if plans else []


def _plan_of_trial(context: StageContext, trial: Trial, seed: int) -> Training:
    """A trial's configuration again; where it changed on the way, it changes there again."""
    of = Hyperparameters.model_validate
    changes = tuple((epoch, of(point)) for epoch, point in trial.get("changes") or ())
    plan = planned(context, of(trial["hyperparameters"]), seed)
    return again(context, replace(plan, changes=changes), seed)


def _of_best_mean(trained: Sequence[Trained], seeds: int) -> list[Trained]:
    """The trainings of the configuration with the best mean over its seeds."""
    groups = [trained[start : start + seeds] for start in range(0, len(trained), seeds)]
    return list(max(groups, key=lambda group: fmean(one.merit for one in group)))


def _opened_test(
    context: StageContext,
    chosen: Trained,
    candidates: Sequence[Trained],
    controls: Sequence[Trained],
    fewer: Sequence[Trained],
) -> dict[str, Any]:
    """Look at the test rows, after every choice is made, and write down what was found."""
    openings = open_test(
        context.run.paths.storage,
        task_data.digest_of_test(context.input("data")),
        step=context.step.name,
        run=context.run.paths.run_id,
    )
    measured = [*candidates, *controls, *fewer]
    trainings = [one.training for one in measured]
    models = [SavedModel(one.output, one.task, one.data, one.execution) for one in trainings]
    scores, predictions = zip(*all_tested(context, models), strict=True)
    of_chosen = measured.index(chosen)
    truth = task_data.load(context.input("data"), task_data.TEST).labels
    written.write(context.output / written.FILE, truth, predictions[of_chosen])
    if controls:
        of_control = measured.index(controls[0])
        written.write(context.output / written.SCRATCH, truth, predictions[of_control])
    return {
        "hyperparameters": chosen.training.hyperparameters.model_dump(),
        "changes": [
            [epoch, {name: getattr(point, name) for name in MAY_CHANGE}]
            for epoch, point in chosen.training.changes
        ],
        "scratch_hyperparameters": [one.training.hyperparameters.model_dump() for one in controls],
        "validation": chosen.validation,
        "test": scores[of_chosen],
        "test_openings": openings,
        "seeds": {
            "pretrained": scores[: len(candidates)],
            "scratch": scores[len(candidates) : len(candidates) + len(controls)],
        },
        **_beside_baselines(context, trainings, scores),
    }


def _beside_baselines(
    context: StageContext, trainings: Sequence[Training], scores: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What methods without a neural network score on the test rows; both, with fewer labels."""
    spec, data = context.spec(FinalSpec), context.input("data")
    train_rows, validation, rows = (task_data.load(data, split) for split in task_data.SPLITS)
    kind = type_of(spec.task, task_data.load_labels(data))
    said = baselines.predictions(kind, train_rows, validation, rows)
    written.write(context.output / written.CONSTANT, rows.labels, said[kind.constant])
    rivals = baselines.scores(kind, rows, said)
    return {
        "metric": spec.task.metric,
        "lower_is_better": spec.task.lower_is_better,
        "test_rows": len(rows),
        "constant": kind.constant,
        "baselines": rivals,
        "label_fractions": [
            {
                "fraction": fraction,
                "rows": len(fewer),
                "baselines": (
                    rivals if fraction == 1.0 else baselines.evaluate(kind, fewer, validation, rows)
                ),
                **_over_seeds(fraction, trainings, scores),
            }
            for fraction, fewer in _fewer_rows(spec, train_rows, kind)
        ],
    }


def _fewer_rows(
    spec: FinalSpec, train: Examples, kind: TaskType
) -> Iterator[tuple[float, Examples]]:
    """The shares of labels, ascending, with the training rows that they are."""
    for fraction in sorted(spec.controls.label_fractions):
        yield fraction, task_data.fewer(train, fraction, type(kind), spec.task.data.split.seed)


def _optimism(
    trials: Sequence[Trial], metric: Metric, candidates: Sequence[Trained]
) -> dict[str, Any]:
    """What the best of many trials scored on the validation rows, and what was chosen again.

    The best of many is chosen for its luck, too, with the seed and with these rows. What is left of
    it with other seeds, and then on the test rows, shows how much that was.
    """
    best = finished(trials, metric)[0]
    return {
        "trials": len(trials),
        "best_validation": best["history"][-1][metric],
        "again_validation": [one.validation for one in candidates],
    }


def _over_seeds(
    fraction: float, trainings: Sequence[Training], scores: Sequence[Mapping[str, float]]
) -> dict[str, list[Mapping[str, float]]]:
    """Test scores with a share of the labels, from the base and from random weights."""
    found: dict[str, list[Mapping[str, float]]] = {"pretrained": [], "scratch": []}
    for training, score in zip(trainings, scores, strict=True):
        if training.label_fraction == fraction:
            found["scratch" if training.from_scratch else "pretrained"].append(score)
    return found
