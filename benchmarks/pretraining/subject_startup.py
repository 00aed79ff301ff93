"""Pretune's start, as a run does it: Ray, a gang of two workers, the first optimizer step.

Without what a run does before (plan, journal, corpus, tokenizer, tokens). The clocks of the rank
are rank 0's. A worker's imports are told apart here; in a run they happen while Ray hands it the
function, so they are the same seconds under another name.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peer import Measurement, Request, parse_arguments

WORKERS = 2
_READY = "model and optimizer are ready"


class MarkReady(logging.Handler):
    """Notes when training says that model and engine are there."""

    def __init__(self, mark: Callable[[str], None]) -> None:
        super().__init__()
        self._mark = mark

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line of the log."""
        if record.getMessage() == _READY:
            self._mark("model and engine")


def process_began() -> float:
    """Clock at the beginning of this process: on Linux it counts from boot, as `stat` does."""
    import os

    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # `starttime`, proc(5)


def train_on_rank(reporter, shared: Path, folder: Path, stage: int) -> None:
    """What a rank runs; rank 0 leaves its clocks in `folder`."""
    import os

    marks = {
        "Ray Train's controller": process_began(),
        "worker processes, torch, process group": time.monotonic(),
    }

    def mark(name: str) -> None:
        marks[name] = time.monotonic()

    import deepspeed  # noqa: F401 -- DeepSpeedEngine imports it later
    from work import pretrain_work

    from trainers import pretrain
    from trainers.pretrain import PretrainExecution

    mark("imports of the worker")

    class FirstStep:
        """Notes when the first step was reported."""

        def report(self, metrics: dict[str, float]) -> None:
            """A step has ended."""
            marks.setdefault("first step", time.monotonic())
            reporter.report(metrics)

        def is_leaving(self) -> bool:
            """As Ray Train says."""
            return reporter.is_leaving()

    logging.getLogger("trainers.pretrain").addHandler(MarkReady(mark))
    execution = PretrainExecution(threads=1, micro_batch_size=None, use_gpu=False)
    request = Request.read(shared)
    pretrain.run(pretrain_work(shared, folder, request, stage), execution, FirstStep())
    if os.environ["RANK"] == "0":
        (folder / "marks.json").write_text(json.dumps(marks), encoding="utf-8")


def main() -> None:
    """Start all that a run starts, and print when each part was done."""
    found = Measurement()
    found.mark("interpreter")
    from cluster.config import ClusterConfig, GangConfig
    from cluster.ray_cluster import connect

    found.mark("imports of the driver")
    arguments = parse_arguments(__doc__)
    shared, folder, stage = arguments.shared.resolve(), arguments.folder.resolve(), arguments.stage

    def rank(reporter) -> None:
        train_on_rank(reporter, shared, folder, stage)

    with connect(ClusterConfig()) as cluster, tempfile.TemporaryDirectory() as directory:
        found.mark("ray.init")
        cluster.run_gang(
            rank,
            GangConfig(workers=WORKERS),
            name="startup",
            directory=directory,
            log=folder / "gang.log",
            on_report=ignore,
        )
    found.marks |= json.loads((folder / "marks.json").read_text(encoding="utf-8"))
    found.print_line()


def ignore(metrics: object) -> None:
    """Rank 0's reports go nowhere."""


if __name__ == "__main__":
    main()
