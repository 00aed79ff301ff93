"""Steps that look at what the base is worth on each task while it is pretrained."""

from collections.abc import Iterator, Mapping

from trainers.config import Schema
from trainers.pretrain_config import PretrainConfig
from trainers.task_config import Metric, TaskConfig
from workflows.drafts import Draft
from workflows.probe_section import ROWS, ProbesConfig, can_be_probed
from workflows.task_section import PipelineTask

_LAST = "pretrain"
PROBE, BASE = "probe.", "base."
"""What inputs of `best_probe` are called: looks, and the models that were looked at."""


class ProbeSpec(Schema):
    """What `probe` knows."""

    task: TaskConfig
    rows: int = ROWS
    """Most training rows that are used."""


class BranchSpec(Schema):
    """What `branch` knows."""

    start_step: int
    """After which the branch left the trunk."""
    tokens: int
    """That its model has seen."""


class BestProbeSpec(Schema):
    """What `best_probe` knows."""

    metric: Metric


def branch_drafts(pretrain: PretrainConfig) -> Iterator[Draft]:
    """The models that pretraining decays to on its way, each taken as soon as it is whole."""
    for start, stop in pretrain.schedule.branch_spans(pretrain.total_steps):
        spec = BranchSpec(start_step=start, tokens=stop * pretrain.global_batch_tokens)
        yield Draft(f"{_LAST}.branch-{start}", "branch", spec, {_LAST: _LAST})


def probe_drafts(
    probe: ProbesConfig, tasks: Mapping[str, PipelineTask], branches: Mapping[str, str]
) -> Iterator[Draft]:
    """Looks at each task, and the choice of a base where a task asks for it.

    Args:
        probe: the section.
        tasks: by name.
        branches: names of the branches' steps, by what they are called in names of looks.
    """
    for name in probe.chosen(tasks):
        if not can_be_probed(tasks[name]):
            continue
        looks = {f"{name}.probe{suffix}": base for suffix, base in {**branches, "": _LAST}.items()}
        spec = ProbeSpec(task=tasks[name].task, rows=probe.rows)
        for look, base in looks.items():
            yield Draft(look, "probe", spec, {"data": f"{name}.data", "base": base})
        if tasks[name].base == "best_probe":
            inputs = {f"{PROBE}{base}": look for look, base in looks.items()}
            inputs |= {f"{BASE}{base}": base for base in looks.values()}
            metric = BestProbeSpec(metric=tasks[name].metric)
            yield Draft(f"{name}.base", "best_probe", metric, inputs)
