"""Pretune's trial, with what it saves counted; a module, so that other processes find it."""

from pathlib import Path

from subject import Ledger

from trainers.finetune import FineTuning
from trainers.task_inputs import TaskInputs


class CountedFineTuning(FineTuning):
    """Counts what it saves, wherever the cluster asks it to."""

    def __init__(self, inputs: TaskInputs, *, ledger: Ledger) -> None:
        super().__init__(inputs)
        self._ledger = ledger

    def save(self, directory: Path) -> None:
        """As `FineTuning`."""
        super().save(directory)
        self._ledger.add(directory)
