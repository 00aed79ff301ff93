"""The step `data`: a task's rows, split."""

from collections.abc import Mapping
from typing import Any

from trainers import task_data
from trainers.task_types import class_of
from workflows.execution import StageContext
from workflows.pipeline import DataSpec


def run(context: StageContext) -> Mapping[str, Any]:
    """Rows of each split, duplicates on one side of each border."""
    spec = context.spec(DataSpec)
    kind = class_of(spec.type, multi_label=spec.multi_label)
    return task_data.prepare(spec.data, kind, context.run.base, context.output)
