"""The step `features`: what the base says of a task's rows, for all trials that train a head."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

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
    size = 0
    if pooling is not None:
        size = sum(features.bytes_of(inputs, pooling).values())
        free = shutil.disk_usage(context.output).free
        if size > _MOST_OF_DISK * free:
            reason = f"they would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            pooling = None
    parts = {} if pooling is None else _computed(context, inputs, pooling)
    index = {"pooling": pooling, "parts": parts}
    (context.output / features.INDEX).write_text(json.dumps(index), encoding="utf-8")
    if pooling is None:
        context.progress.note(f"heads are trained above the whole base: {reason}")
        return {"pooling": "none", "because": reason}
    return {"pooling": pooling, "bytes": size}


def _pooling(context: StageContext, inputs: TaskInputs) -> tuple[Pooling | None, str]:
    if context.run.execution.trials.workers > 1:
        return None, "cluster.trials.workers says that the base is too large for one worker"
    family = inputs.network["model_type"]
    found = features.pooling_of(inputs)
    return found, "" if found else f"a head of {family} reads more of its base than its features"


def _computed(
    context: StageContext, inputs: TaskInputs, pooling: Pooling
) -> dict[str, list[dict[str, Any]]]:
    """Each file's name and first row, by split; the files lie in the output then."""
    trial, exchange = context.run.execution.trials, context.exchange()
    works: list[FeatureWork] = []
    parts: dict[str, list[dict[str, Any]]] = {}
    for split, rows in features.splits_of(inputs).items():
        parts[split] = []
        for part in features.parts_of(rows, pooling):
            name = f"{split}-{part.start:09d}.npy"
            parts[split].append({"name": name, "first": part.start})
            works.append(
                FeatureWork(
                    task=context.spec(FeaturesSpec).task,
                    base=context.input("base"),
                    data=context.input("data"),
                    rows=features.some(rows, part),
                    pooling=pooling,
                    output=context.output / name,
                    execution=execution_of(trial),
                )
            )
    context.run.cluster.map(exchange.mapped(features.compute), works, trial, context.log)
    exchange.collect(context.output)
    return parts
