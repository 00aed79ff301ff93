"""The step `features`: what the base says of a task's rows, for all trials that train a head."""

import shutil
from collections.abc import Mapping
from typing import Any

from cluster.interface import TaskFailedError
from trainers import features
from trainers.features import FeatureWork, Pooling
from trainers.task_inputs import TaskInputs, task_inputs
from workflows.execution import StageContext
from workflows.pipeline import FeaturesSpec
from workflows.trainings import execution_of

_MOST_OF_DISK = 0.5
"""Share of what is free that features may take."""


def run(context: StageContext) -> Mapping[str, Any]:
    """Features in files, and `features.json` about them; none where they would not serve.

    A search does without them as well as with them, so that nothing here fails for their sake.
    """
    trial = context.run.execution.trials
    inputs = task_inputs(
        context.spec(FeaturesSpec).task,
        context.input("base"),
        context.input("data"),
        execution=execution_of(trial),
    )
    pooling, reason = _pooling(context, inputs)
    works: list[FeatureWork] = []
    if pooling is not None:
        try:
            works = _computed(context, inputs, pooling)
        except TaskFailedError as error:
            pooling, reason = None, str(error)
            for path in context.output.iterdir():
                path.unlink()
    features.write_index(context.output, pooling, works)
    if pooling is None:
        again = f"--force {context.step.name} tries again"
        context.progress.note(f"heads are trained above the whole base: {reason}; {again}")
        return {"pooling": "none", "because": reason}
    return {"pooling": pooling, "bytes": sum(features.bytes_of(inputs, pooling).values())}


def _computed(context: StageContext, inputs: TaskInputs, pooling: Pooling) -> list[FeatureWork]:
    """Files in the output folder, each worker's by what it was to do."""
    base, data, trial = context.input("base"), context.input("data"), context.run.execution.trials
    works = features.works(inputs, pooling, base, data, context.output, workers=context.share())
    exchange = context.exchange()
    context.run.cluster.map(exchange.mapped(features.compute), works, trial, context.log)
    exchange.collect(context.output)
    return works


def _pooling(context: StageContext, inputs: TaskInputs) -> tuple[Pooling | None, str]:
    """What is to be kept; or None, and why."""
    if context.run.execution.trials.workers > 1:
        return None, "cluster.trials.workers says that the base is too large for one worker"
    family = inputs.network["model_type"]
    found = features.pooling_of(inputs)
    if found is None:
        return None, f"a head of {family} says something else of features than of texts"
    size = sum(features.bytes_of(inputs, found).values())
    free = shutil.disk_usage(context.output).free
    if size > _MOST_OF_DISK * free:
        return None, f"they would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    return found, ""
