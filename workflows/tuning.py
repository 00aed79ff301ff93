"""The step `tune`: a task's search, which goes on from a finished one with fewer trials."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cluster.config import POPULATION
from cluster.interface import SearchPlan, TrialResult
from trainers import features, finetune, task_inputs
from trainers.courses import Courses
from trainers.task_config import MAY_CHANGE
from workflows import final, trainings
from workflows.artifacts import Artifacts, DamagedArtifactError
from workflows.execution import StageContext
from workflows.ledger import Record
from workflows.pipeline import WARM_START, TuneSpec
from workflows.steps import Step, plain

_RAY = "ray"
_FEATURES = "features"
_EARLIER = "earlier.json"
_DIGITS = 32

# Of a search, what says how long it goes on, and not what it tries.
_BUDGET = {"trials", "max_hours", "least_trials"}


def run(context: StageContext) -> Mapping[str, Any]:
    """The trials of a task's search."""
    spec, trial = context.spec(TuneSpec), context.run.execution.trials
    attempt, cluster = context.attempt, context.run.cluster
    attempt.go_on_with(_RAY)
    earlier = _earlier(context)
    inputs = task_inputs.task_inputs(
        spec.task,
        context.input("base"),
        context.input("data"),
        execution=trainings.execution_of(trial),
    )
    if _FEATURES in context.records:
        stream = context.stream(_FEATURES, keep=len(context.records[_FEATURES].files))
        inputs = replace(inputs, features=features.opened(stream))
    context.progress.of_search(
        spec.task.metric,
        lower_is_better=spec.task.lower_is_better,
        trials=spec.search.trials if spec.search.max_hours is None else None,
    )
    results = cluster.run_trials(
        finetune.FineTuning,
        inputs,
        SearchPlan(
            spec.search,
            trial,
            name=f"search_{context.step.fingerprint[:_DIGITS]}",
            metric=spec.task.metric,
            lower_is_better=spec.task.lower_is_better,
            max_epochs=spec.max_epochs,
            slots=context.share,
            course=Courses(len(inputs.train)),
            may_change=MAY_CHANGE,
            earlier=earlier,
            first=_winners(context),
        ),
        directory=f"{attempt.shared_work}/{_RAY}",
        log=context.log,
        on_result=context.progress.of_trial,
    )
    trials = [asdict(result) for result in results]
    (context.output / final.TRIALS).write_text(json.dumps(trials, indent=1), encoding="utf-8")
    best = final.finished(trials, spec.task.metric)[0]
    return {
        "trials": len(results),
        "of_earlier_search": len(earlier),
        "failed": sum(result.status == "failed" for result in results),
        "stopped": sum(result.status == "stopped" for result in results),
        "cut": sum(result.status == "cut" for result in results),
        "best": best["hyperparameters"],
        "best_validation": best["history"][-1][spec.task.metric],
    }


def longest(artifacts: Artifacts, step: Step, most: int | None = None) -> Record | None:
    """The finished search that differs from a step's in its budget alone, with the most trials.

    Args:
        artifacts: of the storage.
        step: of kind `tune`.
        most: trials that it may have.
    """
    wanted = _without_budget(plain(step.spec))
    inputs = _own({name: ref.fingerprint for name, ref in step.inputs.items()})
    found = [
        record
        for record in artifacts.ledger.commits(step.kind)
        if (record.version, _own(record.inputs)) == (step.version, inputs)
        and _without_budget(record.spec) == wanted
        and "trials" in record.facts  # what was taken in from elsewhere tells nothing
        and (most is None or ended(record) <= most)
    ]
    return max(found, key=ended, default=None)


def ended(record: Record) -> int:
    """Trials of a search that came to their end; those that time cut off are run again."""
    return int(record.facts["trials"] - record.facts.get("cut", 0))


def _own(inputs: Mapping[str, str]) -> dict[str, str]:
    """Inputs without others' searches: which points came first changes none of them."""
    return {name: of for name, of in inputs.items() if not name.startswith(WARM_START)}


def _without_budget(spec: Mapping[str, Any]) -> dict[str, Any]:
    search = {name: value for name, value in spec["search"].items() if name not in _BUDGET}
    return {**spec, "search": search}


def _earlier(context: StageContext) -> Sequence[TrialResult]:
    """Trials of a finished search that this one goes on from, the same after an interruption.

    Who computes the step anew wants none of them.
    """
    attempt, storage = context.attempt, context.run.paths.storage
    name = f"{attempt.name}/work/{_RAY}/{_EARLIER}"
    if not storage.exists(name):
        trials: list[dict[str, Any]] = []
        search = context.spec(TuneSpec).search
        # What is left must be a population of its own.
        most = search.trials - (POPULATION if search.scheduler == "pbt" else 0)
        record = None
        if not attempt.claimed.committed:
            record = longest(context.artifacts, context.step, most)
        if record is not None:
            trials = _trials_of(context, record)
        storage.write(name, json.dumps(trials).encode())
    return [TrialResult(**trial) for trial in json.loads(storage.read(name))]


def _trials_of(context: StageContext, record: Record) -> list[dict[str, Any]]:
    """Trials of a finished search; none where its files are not what they were."""
    try:
        output = context.artifacts.verified(record)
    except DamagedArtifactError as error:
        context.progress.note(f"does not go on from an earlier search: {error}")
        return []
    found: list[dict[str, Any]] = json.loads((output / final.TRIALS).read_text(encoding="utf-8"))
    trials = [trial for trial in found if trial["status"] != "cut"]
    context.progress.note(f"goes on from {len(trials)} trials of a finished search")
    return trials


def _winners(context: StageContext) -> list[Mapping[str, Any]]:
    """The best configurations of the tasks that `search.warm_start` names."""
    found: list[Mapping[str, Any]] = []
    for name, ref in context.step.inputs.items():
        if name.startswith(WARM_START):
            metric = context.records[name].spec["task"]["metric"]
            text = (context.input(name) / final.TRIALS).read_text(encoding="utf-8")
            found.append(final.last_point(final.finished(json.loads(text), metric)[0]))
            context.progress.note(f"tries first what was best in {ref.name}")
    return found
