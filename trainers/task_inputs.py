"""What every training of a task begins with: the base's weights, the rows as tokens, a place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from trainers import bases, task_data, task_model
from trainers.predict import tokenizer_of
from trainers.pretrain_config import ZeroStage
from trainers.task_config import TaskConfig
from trainers.task_types import TaskType, type_of
from trainers.task_types.base import Encoded, Shown


@dataclass(frozen=True)
class TrialExecution:
    """How a training is run; what comes of it does not depend on it, but for rounding."""

    threads: int
    """Of each process."""
    use_gpu: bool
    """Or the CPU."""
    zero_stage: ZeroStage = 3
    """Of DeepSpeed, where several processes train one model."""
    hang_after_s: float = 120.0
    """Least seconds without a forward pass after which one of several ends itself."""


@dataclass(frozen=True)
class TaskInputs:
    """All that trainings of one task share: plain arrays, placed once per node."""

    kind: TaskType
    network: dict[str, Any]
    """The base's configuration with what the task's head has to know."""
    weights: Mapping[str, NDArray[Any]]
    """The base's weights by name."""
    train: Encoded
    whole: int
    """Sequences of all training rows, of which `train` may be a share."""
    validation: Encoded
    truth: list[Any]
    """Labels of the validation rows."""
    class_weights: NDArray[np.float32] | None
    tokenizer: PreTrainedTokenizerFast
    execution: TrialExecution
    features: Mapping[str, Shown] = field(default_factory=dict)
    """Of the base, by split, where they were computed."""


def task_inputs(
    task: TaskConfig,
    base: Path,
    data: Path,
    *,
    execution: TrialExecution,
    label_fraction: float = 1.0,
) -> TaskInputs:
    """Read a base model's folder and a task's prepared rows; the test rows stay closed.

    Args:
        task: the user's section.
        base: a Hugging Face folder.
        data: what `task_data.prepare` wrote.
        execution: how a training is run.
        label_fraction: share of the training rows that is used.
    """
    loaded = tokenizer_of(base, task)
    network, weights = bases.weights_of(base)
    kind = type_of(task, task_data.load_labels(data))
    configured = kind.configure(network) | {"pad_token_id": loaded.pad_token_id}
    task_model.require_positions(configured, kind.head, task.max_length)
    train, validation = (
        task_data.load(data, split) for split in (task_data.TRAIN, task_data.VALIDATION)
    )
    encoded = kind.encode(train, loaded, network)
    whole = len(encoded)
    if label_fraction < 1.0:
        train = task_data.fewer(train, label_fraction, type(kind), task.data.split.seed)
        encoded = kind.encode(train, loaded, network)
    return TaskInputs(
        kind=kind,
        network=configured,
        weights=weights,
        train=encoded,
        whole=whole,
        validation=kind.encode(validation, loaded, network),
        truth=validation.labels,
        class_weights=kind.weights(train.labels),
        tokenizer=loaded,
        execution=execution,
    )
