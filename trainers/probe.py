"""A first, cheap look at what a base is worth on a task: a head alone, on few rows."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainers import baselines, features, task_data
from trainers.finetune import FineTuning
from trainers.task_config import TaskConfig
from trainers.task_inputs import TaskInputs, TrialExecution, task_inputs

_EPOCHS = 5
_LEARNING_RATES = (1e-3, 1e-2)


@dataclass(frozen=True)
class Probe:
    """One look, in a form that travels to another process."""

    task: TaskConfig
    base: Path
    data: Path
    rows: int
    """Most training rows that are used."""
    execution: TrialExecution


def look(probe: Probe) -> dict[str, Any]:
    """Metrics on the validation rows: of a head above the frozen base, and of the baselines."""
    torch.set_num_threads(probe.execution.threads)
    train = task_data.load(probe.data, task_data.TRAIN)
    fraction = min(1.0, probe.rows / len(train))
    inputs = task_inputs(
        probe.task, probe.base, probe.data, execution=probe.execution, label_fraction=fraction
    )
    few = task_data.fewer(train, fraction, type(inputs.kind), probe.task.data.split.seed)
    validation = task_data.load(probe.data, task_data.VALIDATION)
    with tempfile.TemporaryDirectory() as folder:
        slot = FineTuning(_with_features(probe, inputs, Path(folder)))
        of_heads = [_scores(slot, rate) for rate in _LEARNING_RATES]
    return {
        "rows": len(few),
        "head": max(of_heads, key=probe.task.merit),
        "baselines": baselines.evaluate(inputs.kind, few, validation, validation),
    }


def _with_features(probe: Probe, inputs: TaskInputs, folder: Path) -> TaskInputs:
    pooling = features.pooling_of(inputs)
    if pooling is None:
        return inputs
    works = features.works(inputs, pooling, probe.base, probe.data, folder, workers=1)
    for work in works:
        features.compute(work)
    features.write_index(folder, pooling, works)
    return replace(inputs, features=features.opened(folder.joinpath))


def _scores(slot: FineTuning, learning_rate: float) -> Mapping[str, float]:
    slot.start({"method": "head", "epochs": _EPOCHS, "learning_rate": learning_rate})
    while not slot.is_finished:
        slot.train_epoch()
    return slot.validate()
