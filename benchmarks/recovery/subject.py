"""A gang of two ranks that loses one: run by `recovery.py`, one variant in each process.

Every rank imports what a real one does, then takes a toy step (an all-reduce of a million numbers)
ten times a second and writes down when. Prints one JSON line: the seconds from the SIGKILL of rank
1 to the end of the next step, and the steps that were made twice.

- `pretune`: `RayCluster.run_gang`.
- `ray`: Ray Train as its documentation shows it, `FailureConfig(max_failures=-1)`.
- `new-fit`: no retry in Ray Train; whoever calls `fit` calls it again.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.config import ClusterConfig, GangConfig
from cluster.ray_cluster import connect

STEPS_BEFORE, STEPS_AFTER = 20, 20
STEP_S = 0.1


class Toy:
    """What each rank runs; picklable without this module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, _: object = None) -> None:
        """Steps from the last one that any rank wrote down; the argument is pretune's reporter."""
        import deepspeed  # noqa: F401
        import torch
        import torch.distributed as dist
        import transformers

        assert transformers.PreTrainedModel
        rank, saved = dist.get_rank(), self.folder / "saved"
        (self.folder / f"pid{rank}").write_text(str(os.getpid()))
        start = int(saved.read_text()) if saved.exists() else 0
        for step in range(start, STEPS_BEFORE + STEPS_AFTER):
            dist.all_reduce(torch.ones(1_000_000))
            time.sleep(STEP_S)
            if rank == 0:
                with (self.folder / "steps").open("a") as file:
                    file.write(f"{step} {time.time()}\n")
                (self.folder / "saving").write_text(str(step + 1))
                (self.folder / "saving").replace(saved)


def steps(folder: Path) -> list[tuple[int, float]]:
    """Number and end of each step."""
    path = folder / "steps"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(step), float(at)) for step, at in rows]


def kill_when_it_runs(folder: Path, killed: list[float]) -> None:
    """SIGKILL rank 1 after so many steps."""
    while len(steps(folder)) < STEPS_BEFORE:
        time.sleep(0.01)
    os.kill(int((folder / "pid1").read_text()), signal.SIGKILL)
    killed.append(time.time())


def fit(folder: Path, name: str, max_failures: int) -> None:
    """Ray Train, as its documentation shows it."""
    TorchTrainer(
        Toy(folder),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    ).fit()


def run(variant: str, folder: Path) -> None:
    """One variant, to its end."""
    with connect(ClusterConfig()) as cluster:
        if variant == "pretune":
            cluster.run_gang(
                Toy(folder),
                GangConfig(workers=2),
                name="gang",
                directory=str(folder / "ray"),
                log=folder / "gang.log",
                on_report=print,
            )
        elif variant == "ray":
            fit(folder, "gang", -1)
        else:
            try:
                fit(folder, "first", 0)
            except TrainingFailedError:
                fit(folder, "second", 0)


def main() -> None:
    """The command line: variant, folder."""
    variant, folder = sys.argv[1], Path(sys.argv[2])
    killed: list[float] = []
    threading.Thread(target=kill_when_it_runs, args=(folder, killed), daemon=True).start()
    run(variant, folder)
    told = steps(folder)
    back_at = next(at for _, at in told if at > killed[0] + 2 * STEP_S)
    assert {step for step, _ in told} == set(range(STEPS_BEFORE + STEPS_AFTER))
    facts = {
        "seconds": back_at - killed[0],
        "steps_twice": len(told) - len({step for step, _ in told}),
        "ray": ray.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
