"""Times how long a checkpoint keeps the training loop: pretune's, and the usual ways.

    python benchmarks/checkpoint.py --megabytes 64 256 --repeats 7

One rank of DeepSpeed (ZeRO 1, fp32, AdamW) trains a stack of linear layers; all subjects save the
same weights and moments. Subjects are interleaved. `call` is how long the loop waits: the call that
saves, and for pretune the wait before the next update. `loop` is by how much the save and the steps
behind it take longer than as many steps without one; it holds what the background takes from
training too. `durable` is the time from the call until the files are complete, for those that sync
them on the disk. Prints the table and writes `benchmarks/results/checkpoint-DATE.md`.
"""

import argparse
import importlib.metadata
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from machine import describe_machine
from torch import nn

from trainers import optim
from trainers.checkpointer import Checkpointer
from trainers.deepspeed_engine import DeepSpeedEngine
from trainers.engine import Ranks
from trainers.pretrain_config import CheckpointConfig, ZeroConfig

LAYERS = 16
STEPS_BEHIND = 4
BYTES_PER_PARAMETER = 12  # weight and two moments
SUBJECTS = {
    "pretune": "`Checkpointer.save`, digests and fsync",
    "torch": "`torch.save`",
    "torch-fsync": "`torch.save`, then fsync",
    "dcp-async": "`torch.distributed.checkpoint.async_save`",
    "deepspeed": "DeepSpeed's `save_checkpoint`, its default writer",
}
PACKAGES = ("torch", "deepspeed")
Runs = dict[str, list[dict[str, float]]]


class World:
    """The training that is saved, and each way to save it."""

    def __init__(self, megabytes: int, folder: Path) -> None:
        width = round((megabytes * 1e6 / BYTES_PER_PARAMETER / LAYERS) ** 0.5)
        module = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
        self.optimizer = optim.adamw(
            module, learning_rate=1e-4, weight_decay=0.1, betas=(0.9, 0.95)
        )
        self.engine = DeepSpeedEngine(
            module,
            self.optimizer,
            lambda called, batch: called(batch["x"]).square().mean(),
            zero=ZeroConfig(stage=1),
            micro_batch_size=64,
            micro_batches=1,
            precision="fp32",
            gradient_clipping=1.0,
            device=torch.device("cpu"),
        )
        self.batch = {"x": torch.randn(64, width)}
        self.folder, self.number = folder, 0
        self.checkpointer = Checkpointer(
            self.engine,
            root=folder / "pretune",
            earlier=(),
            ranks=Ranks(),
            config=CheckpointConfig(keep=1),
            share=None,
        )
        self.deepspeed = self.engine._engine  # noqa: SLF001
        self.ours = self.deepspeed.checkpoint_engine
        self.pending: Callable[[], object] = lambda: None
        self.group = dist.new_group(backend="gloo")

    def state(self) -> dict:
        """Weights and moments, as tensors."""
        return {
            "module": self.engine.module.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
        }

    def step(self) -> None:
        """One optimizer step."""
        self.engine.step([self.batch])

    def save(self, subject: str) -> Path:
        """Begin a checkpoint; `pending` ends it. Its folder."""
        self.number += 1
        target = self.folder / subject / f"step-{self.number:09d}"
        self.pending = lambda: None
        if subject == "pretune":
            self.checkpointer.save(self.number, {})
            self.pending = self.checkpointer.finish
            return target
        target.mkdir(parents=True)
        if subject == "dcp-async":
            state = {"module": self.state()["module"], "optimizer": self.state()["optimizer"]}
            self.pending = dcp.async_save(
                state, checkpoint_id=target, process_group=self.group
            ).result
        elif subject == "deepspeed":
            self.deepspeed._configure_checkpointing()  # noqa: SLF001 -- DeepSpeed's own writer
            self.deepspeed.save_checkpoint(str(target), tag="state")
            self.deepspeed.checkpoint_engine = self.ours
        else:
            with (target / "state.pt").open("wb") as file:
                torch.save(self.state(), file)
                if subject == "torch-fsync":
                    file.flush()
                    os.fsync(file.fileno())
        return target

    def run(self, subject: str, step_s: float) -> dict[str, float]:
        """One checkpoint and the steps behind it."""
        waited_s = self.checkpointer.stall_s
        started = time.perf_counter()
        target = self.save(subject)
        call_s = time.perf_counter() - started
        for _ in range(STEPS_BEHIND):
            self.step()
        loop_s = time.perf_counter() - started - STEPS_BEHIND * step_s
        if subject == "pretune":
            call_s = self.checkpointer.stall_s - waited_s
        self.pending()
        durable_s = time.perf_counter() - started
        if subject in ("torch", "torch-fsync", "deepspeed"):
            durable_s = call_s
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        shutil.rmtree(target)
        return {"call": call_s, "loop": loop_s, "durable": durable_s, "bytes": size}


def measure(megabytes: int, repeats: int, folder: Path) -> Runs:
    """All subjects, interleaved; the first round, in which buffers are made, is not counted."""
    world = World(megabytes, folder)
    runs: Runs = {subject: [] for subject in SUBJECTS}
    for repeat in range(-1, repeats):
        for subject, lines in runs.items():
            times = []
            for _ in range(STEPS_BEHIND):
                started = time.perf_counter()
                world.step()
                times.append(time.perf_counter() - started)
            line = world.run(subject, statistics.median(times))
            if repeat >= 0:
                lines.append(line)
            print(f"{megabytes} MB {repeat + 1}/{repeats} {subject} {line}", file=sys.stderr)
    return runs


def middle(lines: list[dict[str, float]], name: str) -> str:
    """Median and interquartile range of a figure, in milliseconds."""
    values = [line[name] * 1000 for line in lines]
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.0f} ({low:.0f}-{high:.0f})"


def build_table(runs: Runs) -> list[str]:
    """Medians as a Markdown table."""
    base = statistics.median(line["call"] for line in runs["torch"])
    lines = [
        "| subject | call, ms | of `torch.save` | loop, ms | durable, ms | MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for subject, measured in runs.items():
        call = statistics.median(line["call"] for line in measured)
        lines.append(
            f"| {SUBJECTS[subject]} | {middle(measured, 'call')} | {call / base:.2f} "
            f"| {middle(measured, 'loop')} | {middle(measured, 'durable')} "
            f"| {measured[-1]['bytes'] / 1e6:.0f} |"
        )
    return lines


def main() -> None:
    """Run everything, print the tables, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    world = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in world.items()}})
    dist.init_process_group("gloo")
    sizes = " ".join(map(str, options.megabytes))
    date = datetime.now(tz=UTC).date().isoformat()
    report = [
        f"# Checkpoints, {date}",
        "",
        f"`python benchmarks/checkpoint.py --megabytes {sizes} --repeats {options.repeats}`",
        "",
        f"Medians (quartiles) of {options.repeats} interleaved runs on one rank with one thread.",
        "What the columns mean is in the docstring of `benchmarks/checkpoint.py`.",
        "",
    ]
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=options.folder) as folder:
            runs = measure(megabytes, options.repeats, Path(folder))
        table = build_table(runs)
        print("\n".join(table))
        report += [f"## {megabytes} MB of weights and moments", "", *table, ""]
    report += ["## Machine", "", *describe_machine(options.folder), "", "## Versions", ""]
    report += [f"- {name} {importlib.metadata.version(name)}" for name in PACKAGES]
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"checkpoint-{date}.md"
    path.write_text("\n".join([*report, ""]), encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
