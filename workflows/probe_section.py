"""The section `probe:` of the pipeline file: looks at the base while it is pretrained."""

from collections.abc import Iterator, Mapping

from trainers.config import PositiveInt, Schema
from trainers.pretrain_config import PretrainConfig
from trainers.task_config import METHODS_OF_TASK
from workflows.suggestions import suggestion
from workflows.task_section import PipelineTask

ROWS = 2000


class ProbesConfig(Schema):
    """A head on few rows of each task, above every branch of pretraining and above its end."""

    rows: PositiveInt = ROWS
    """Most training rows of a look."""

    tasks: list[str] | None = None
    """All that a head can learn when absent."""

    def chosen(self, tasks: Mapping[str, PipelineTask]) -> list[str]:
        """Names of the tasks that are looked at."""
        return list(tasks) if self.tasks is None else self.tasks


def can_be_probed(task: PipelineTask) -> bool:
    """Whether a head above the frozen base can learn a task."""
    return "head" in METHODS_OF_TASK[task.type]


def problems(
    probe: ProbesConfig | None, tasks: Mapping[str, PipelineTask], pretrain: PretrainConfig | None
) -> Iterator[str]:
    """What does not fit together."""
    chosen = probe.chosen(tasks) if probe else []
    for name in chosen:
        if name not in tasks:
            yield f"probe.tasks: no task {name!r}{suggestion(name, tasks)}"
        elif probe and probe.tasks and not can_be_probed(tasks[name]):
            yield f"probe.tasks: no head learns {name}, of type {tasks[name].type}; leave it out"
    if probe and (pretrain is None or not pretrain.schedule.branches):
        yield (
            "probe: looks at the branches of pretraining; give some, for example "
            "pretrain.schedule: {name: wsd, branches: [0.25, 0.5]}"
        )
    for name, task in tasks.items():
        if task.base == "best_probe" and not (name in chosen and can_be_probed(task)):
            yield f"tasks.{name}.base: best_probe needs a probe of {name}; see the section probe"
