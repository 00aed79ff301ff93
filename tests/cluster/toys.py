"""Work for cluster tests; in a module of its own, so that other processes can import it."""

import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.interface import Metrics, Reporter


def double(value: int) -> int:
    print(f"doubling {value}")
    return 2 * value


def fail(message: str) -> None:
    raise KeyError(message)


def die(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(marker: Path) -> str:
    """Kill this process the first time it is called for a marker."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def write_to(path: Path, metrics: Metrics) -> None:
    with path.open("a") as file:
        file.write(f"{metrics['sum']:g}\n")


def gang_sum(reporter: Reporter) -> None:
    """All ranks add up their rank + 1."""
    import torch.distributed as dist
    from torch import tensor

    total = tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}")
    reporter.report({"sum": float(total)})


def gang_rank_raises(reporter: Reporter) -> None:
    if os.environ["RANK"] == "1":
        raise KeyError("rank 1")
    time.sleep(60)


class GangWithOneDeath:
    """Rank 1 dies the first time, in the middle of a collective."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, reporter: Reporter) -> None:
        import torch.distributed as dist

        dist.barrier()
        if dist.get_rank() == 1:
            die_once(self.marker)
        gang_sum(reporter)


class ToyTrial:
    """Scores `x` times its epoch; some values of `x` misbehave."""

    def __init__(self, shared: Mapping[str, Any]) -> None:
        self.shared = shared
        self.epoch = 0

    @property
    def is_finished(self) -> bool:
        return self.epoch >= self.epochs

    def start(self, hyperparameters: Mapping[str, Any]) -> None:
        self.x, self.epochs, self.epoch = hyperparameters["x"], hyperparameters["epochs"], 0
        with Path(self.shared["starts"]).open("a") as file:
            file.write(f"{self.x} {os.getpid()}\n")

    def step(self) -> dict[str, float]:
        self.epoch += 1
        if self.x == -1:
            raise ValueError("minus one")
        if self.x == -2:
            return {"score": math.nan}
        if self.x == -3 and self.epoch == 2:
            die_once(Path(self.shared["marker"]))
        return {"score": float(self.x * self.epoch)}

    def save(self, directory: Path) -> None:
        (directory / "epoch").write_text(str(self.epoch))

    def load(self, directory: Path) -> None:
        self.epoch = int((directory / "epoch").read_text())
