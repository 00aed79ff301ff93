"""One rank of a fine-tuning: does what a pickle asks of it, one training after another."""

import itertools
import os
import pickle
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainers.finetune import FineTuning
from trainers.predict import tokenizer_of
from trainers.task_config import TaskConfig
from trainers.task_inputs import TrialExecution, task_inputs


@dataclass(frozen=True)
class Request:
    """A training, and what is to be done in its middle."""

    task: TaskConfig
    base: Path
    data: Path
    settings: dict[str, Any]
    execution: TrialExecution
    halvings: int = 0
    resumes_in: Path | None = None
    """Saves after the first epoch there, and has another training go on."""
    output: Path | None = None
    hangs_at: int | None = None
    """The forward pass in which rank 1 falls asleep."""


@dataclass(frozen=True)
class Found:
    """What a training came to."""

    scores: list[dict[str, float]]
    weights: dict[str, torch.Tensor]


def run(request: Request) -> Found:
    """Train to the end, alone or as a rank."""
    inputs = task_inputs(request.task, request.base, request.data, execution=request.execution)
    slot, scores = FineTuning(inputs), []
    slot.start(request.settings, halvings=request.halvings)
    if request.hangs_at is not None and dist.get_rank() == 1:
        fall_asleep(slot, request.hangs_at)
    while not slot.is_finished:
        scores.append(slot.step())
        if request.resumes_in and slot.epoch == 1:
            slot.save(request.resumes_in)
            slot = FineTuning(inputs)
            slot.start(request.settings, halvings=request.halvings)
            slot.load(request.resumes_in)
    if request.output:
        slot.export(request.output, tokenizer_of(request.base, request.task))
    return Found(scores, slot.weights)


def fall_asleep(slot: FineTuning, at: int) -> None:
    """In a forward pass of its model."""
    passes = itertools.count(1)

    def sleep(*_: object) -> None:
        if next(passes) == at:
            time.sleep(600)

    slot.model.register_forward_pre_hook(sleep)


def on_ranks(request: Request, stage: Any) -> Request:
    """The same with DeepSpeed."""
    return replace(request, execution=replace(request.execution, zero_stage=stage))


def main() -> None:
    """All that is asked for."""
    requests = pickle.loads(Path(sys.argv[1]).read_bytes())
    dist.init_process_group("gloo")
    found = [run(request) for request in requests]
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_bytes(pickle.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort a process now and then while Python takes them down


if __name__ == "__main__":
    import tuning_world  # pickles know its classes by this name

    tuning_world.main()
