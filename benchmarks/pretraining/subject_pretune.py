"""Pretune: `trainers.pretrain.run`, on one rank (`PlainEngine`) or on several (DeepSpeed).

With at most 100 steps every step is reported, and a report follows its step at once: the clock of a
report is that of the peers' end of a step. Trainings of more steps report a hundredth of them, so
what a report costs is in these numbers and hardly in a real training.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch.distributed
from peer import ROWS, Measurement, Request, leave, parse_arguments
from work import pretrain_work

from trainers import pretrain
from trainers.pretrain import PretrainExecution
from trainers.tokenizer import plain


@dataclass(frozen=True)
class Clock:
    """Notes when each step was reported."""

    found: Measurement

    def report(self, metrics: Mapping[str, float]) -> None:
        """A step has ended."""
        self.found.end_step()
        self.found.losses.append(metrics["loss"])

    def is_leaving(self) -> bool:
        """No node goes here."""
        return False


def text_tokens(rows: np.ndarray, end: int) -> list[int]:
    """Of each step, tokens that are no filling: the end tokens behind the last text of a row."""
    is_filling = np.cumprod(rows[..., ::-1] == end, axis=-1)
    return (rows[0].size - is_filling.sum(axis=(1, 2))).tolist()


def main() -> None:
    """Train on this rank; rank 0 prints the measurement."""
    arguments = parse_arguments(__doc__)
    request, found = Request.read(arguments.shared), Measurement()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size > 1:
        torch.distributed.init_process_group("gloo")
    work = pretrain_work(arguments.shared, arguments.folder, request, arguments.stage)
    execution = PretrainExecution(threads=1, micro_batch_size=None, use_gpu=False)
    pretrain.run(work, execution, Clock(found))
    rows = np.load(arguments.shared / ROWS)
    found.positions = [rows[0].size] * request.steps
    if request.packing == "concat":
        found.tokens = [rows[0].size] * request.steps
    else:
        found.tokens = text_tokens(rows, plain(work.tokenizer)[1])
    if rank == 0:
        found.print_line()
    if world_size > 1:
        torch.distributed.barrier()
        leave()


if __name__ == "__main__":
    main()
