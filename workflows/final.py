"""After the search: train the best again, choose by validation, open the test split once."""

import json
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from trainers import baselines, finetune, tasks
from trainers.finetune import Training
from trainers.task_config import Hyperparameters
from workflows.execution import StageContext
from workflows.pipeline import FinalSpec

TRIALS = "trials.json"
RESULT = "final.json"
MODEL = "model"
PREDICTIONS = "predictions.json"


Trial = Mapping[str, Any]
"""A `cluster.interface.TrialResult` as it stands in `trials.json`."""


class NoTrialFinishedError(RuntimeError):
    """A search ended without one usable configuration."""


@dataclass(frozen=True)
class Trained:
    """A training and its metric on the validation rows."""

    training: Training
    validation: float


def run(context: StageContext) -> Mapping[str, Any]:
    """The chosen model in `model/`, all scores in `final.json`, test predictions beside them."""
    spec = context.spec(FinalSpec)
    seeds = range(spec.final.seeds)
    trials = json.loads((context.input("tune") / TRIALS).read_text(encoding="utf-8"))
    top = [
        Hyperparameters.model_validate(trial["hyperparameters"])
        for trial in finished(trials, spec.task.metric)[: spec.final.top]
    ]
    plans = [_plan(context, "pretrained", point, seed) for point in top for seed in seeds]
    scratch_points = _scratch_points(spec, top[0])
    # The control's learning rate is chosen with one seed, at the same time.
    first = [_plan(context, "scratch", point, 0) for point in scratch_points]
    trained = _train(context, [*plans, *first])

    candidates = _of_best_mean(trained[: len(plans)], spec.final.seeds)
    chosen = max(candidates, key=lambda one: one.validation)
    controls = []
    if first:
        winner = max(trained[len(plans) :], key=lambda one: one.validation)
        point = winner.training.hyperparameters
        others = [_plan(context, "scratch", point, seed) for seed in seeds[1:]]
        controls = [winner, *_train(context, others)]
    result = _opened_test(context, spec, chosen, candidates, controls)
    context.exchange().collect(chosen.training.output)
    shutil.move(chosen.training.output, context.output / MODEL)
    return {name: result[name] for name in ("hyperparameters", "test", "validation", "seeds")}


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Best first by the last epoch on the validation rows."""

    def last(trial: Trial) -> float:
        history = trial["history"]
        return float(history[-1].get(metric, -math.inf)) if history else -math.inf

    return sorted(trials, key=last, reverse=True)


def finished(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Those that trained to their last epoch, best first.

    Raises:
        NoTrialFinishedError: there is none; tells what ended them.
    """
    found = [trial for trial in ranked(trials, metric) if trial["status"] == "finished"]
    if not found:
        errors = "; ".join(sorted({trial["error"] for trial in trials if trial["error"]}))
        raise NoTrialFinishedError(f"none of {len(trials)} trials finished: {errors}")
    return found


def _scratch_points(spec: FinalSpec, point: Hyperparameters) -> list[Hyperparameters]:
    """The best point with each learning rate the control may choose; random weights train whole."""
    if not spec.controls.scratch:
        return []
    return [
        point.model_copy(
            update={
                "method": "full",
                "layer_decay": 1.0,
                "learning_rate": point.learning_rate * multiple,
            }
        )
        for multiple in spec.controls.scratch_learning_rates
    ]


def _plan(context: StageContext, origin: str, point: Hyperparameters, seed: int) -> Training:
    worker = context.run.execution.trials
    return Training(
        task=context.spec(FinalSpec).task,
        base=context.input("pretrain"),
        data=context.input("data"),
        hyperparameters=point.model_copy(update={"seed": seed}),
        from_scratch=origin == "scratch",
        output=context.attempt.work / "models" / uuid.uuid4().hex,
        threads=worker.cpus,
        use_gpu=bool(worker.gpus),
    )


def _train(context: StageContext, plans: Sequence[Training]) -> list[Trained]:
    function = context.exchange().mapped(finetune.train_and_export)
    scores = context.run.cluster.map(function, plans, context.run.execution.trials, context.log)
    metric = context.spec(FinalSpec).task.metric
    return [Trained(plan, found[metric]) for plan, found in zip(plans, scores, strict=True)]


def _of_best_mean(trained: Sequence[Trained], seeds: int) -> list[Trained]:
    """The trainings of the configuration with the best mean over its seeds."""
    groups = [trained[start : start + seeds] for start in range(0, len(trained), seeds)]
    return list(max(groups, key=lambda group: fmean(one.validation for one in group)))


def _opened_test(
    context: StageContext,
    spec: FinalSpec,
    chosen: Trained,
    candidates: Sequence[Trained],
    controls: Sequence[Trained],
) -> dict[str, Any]:
    """Look at the test rows, after every choice is made, and write down what was found."""
    task, data = spec.task, context.input("data")
    measured = [*candidates, *controls]
    function = context.exchange().mapped(finetune.test)
    trainings = [one.training for one in measured]
    found = context.run.cluster.map(function, trainings, context.run.execution.trials, context.log)
    scores = [score for score, _ in found]
    predictions = found[measured.index(chosen)][1]
    test = tasks.load(data, tasks.TEST)
    train, validation = tasks.load(data, tasks.TRAIN), tasks.load(data, tasks.VALIDATION)
    result = {
        "metric": task.metric,
        "hyperparameters": chosen.training.hyperparameters.model_dump(),
        "validation": chosen.validation,
        "test": scores[measured.index(chosen)],
        "test_rows": len(test),
        "test_openings": 1,
        "seeds": {
            "pretrained": scores[: len(candidates)],
            "scratch": scores[len(candidates) :],
        },
        "scratch_hyperparameters": [one.training.hyperparameters.model_dump() for one in controls],
        "baselines": baselines.evaluate(task, train, validation, test),
    }
    (context.output / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    (context.output / PREDICTIONS).write_text(
        json.dumps([asdict(prediction) for prediction in predictions]), encoding="utf-8"
    )
    return result
