"""`pretune predict` on one worker: what the command does behind its imports."""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from trainers import inference
from trainers.config import SourceConfig
from trainers.pieces import END, Shard, Span
from trainers.predict import Predictor
from trainers.task_config import TaskConfig


def main() -> None:
    """Label a file and print seconds, rows and memory as JSON."""
    model, task, source, output = (Path(argument) for argument in sys.argv[1:5])
    torch.set_num_threads(1)
    predictor = Predictor(model, TaskConfig.model_validate_json(task.read_text(encoding="utf-8")))
    shard = Shard(SourceConfig(path=str(source), format="jsonl"), 0, (Span(str(source), 0, END),))
    started = time.monotonic()
    with output.open("wb") as file:
        rows = inference.label(predictor, shard, file, "jsonl")
    seconds = time.monotonic() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "rows": rows, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
