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


def apart(point: Mapping[str, Any]) -> list[Any]:
    """The course of points that share nothing."""
    return [dict(point)] * point["epochs"]


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
        self.sum = 0.0
        self.pause_s = hyperparameters.get("pause_s", 0.0)
        with Path(self.shared["starts"]).open("a") as file:
            file.write(f"{self.x} {os.getpid()}\n")

    def step(self) -> dict[str, float]:
        self.epoch += 1
        self.sum += self.x
        time.sleep(self.pause_s)
        if self.x == -1:
            raise ValueError("minus one")
        if self.x == -2:
            return {"score": math.nan}
        if self.x == -4:
            for _ in range(1024):
                print("x" * (1 << 20))
        if self.x == -3 and self.epoch == 2:
            die_once(Path(self.shared["marker"]))
        return {"score": float(self.x * self.epoch), "sum": float(self.sum)}

    def save(self, directory: Path) -> None:
        (directory / "epoch").write_text(f"{self.epoch} {self.sum}")

    def load(self, directory: Path) -> None:
        epoch, total = (directory / "epoch").read_text().split()
        self.epoch, self.sum = int(epoch), float(total)


def together(point: Mapping[str, Any]) -> list[Any]:
    """The course of points that share all epochs if they differ in the number of them alone."""
    return [{**point, "epochs": None}] * point["epochs"]


class CountingTrial:
    """Adds `x` up, writes down every epoch that it trains, and takes a moment for it."""

    def __init__(self, shared: Mapping[str, Any]) -> None:
        self.trained = Path(shared["trained"])

    @property
    def is_finished(self) -> bool:
        return self.epoch >= self.epochs

    def start(self, hyperparameters: Mapping[str, Any]) -> None:
        self.x, self.epochs = hyperparameters["x"], hyperparameters["epochs"]
        self.sum, self.epoch = 0, 0

    def step(self) -> dict[str, float]:
        time.sleep(0.1)
        self.sum += self.x
        self.epoch += 1
        with self.trained.open("a") as file:
            file.write(f"[{os.getpid()}, {self.x}, {self.epoch}]\n")
        return {"score": float(self.sum)}

    def save(self, directory: Path) -> None:
        (directory / "sum").write_text(f"{self.sum} {self.epoch}")

    def load(self, directory: Path) -> None:
        self.sum, self.epoch = map(int, (directory / "sum").read_text().split())


class CountingTrialWhoseStoreHangsUp(CountingTrial):
    """Cannot read its state the first time."""

    def load(self, directory: Path) -> None:
        marker = self.trained.with_name("hung_up")
        if not marker.exists():
            marker.touch()
            raise ConnectionResetError("the store hung up")
        super().load(directory)


class OutOfMemoryError(RuntimeError):
    """By this name a gang tells that its memory did not suffice."""


class ToyTrialOfRanks(ToyTrial):
    """The same on several ranks, which bring their sums together; they save a file each."""

    def start(self, hyperparameters: Mapping[str, Any], *, halvings: int = 0) -> None:
        super().start(hyperparameters)
        self.halvings = halvings
        if self.x == -7 and os.environ["RANK"] == "1":
            die_once(Path(f"{self.shared['marker']}_at_start"))

    def step(self) -> dict[str, float]:
        import torch.distributed as dist
        from torch import tensor

        metrics = super().step()
        if self.x == -5 and self.epoch == 2 and self.halvings < 1 and dist.get_rank() == 1:
            raise OutOfMemoryError("out of memory: cannot allocate")
        if self.x == -6 and self.epoch == 2 and dist.get_rank() == 1:
            die_once(Path(self.shared["marker"]))
        total = tensor(self.sum * (dist.get_rank() + 1))
        dist.all_reduce(total)
        return {**metrics, "total": float(total), "halvings": float(self.halvings)}

    def save(self, directory: Path) -> None:
        (directory / f"rank{os.environ['RANK']}").mkdir()
        super().save(directory / f"rank{os.environ['RANK']}")

    def load(self, directory: Path) -> None:
        assert len(list(directory.iterdir())) == int(os.environ["WORLD_SIZE"])
        super().load(directory / f"rank{os.environ['RANK']}")


def scaled_on_ranks(value: int, halvings: int) -> int:
    """On every rank; some values misbehave once."""
    import torch.distributed as dist
    from torch import tensor

    if value == -1 and dist.get_rank() == 1:
        raise KeyError("minus one")
    if value == -5 and halvings == 0:
        raise OutOfMemoryError("out of memory: cannot allocate")
    total = tensor(value)
    dist.all_reduce(total)
    return int(total) * 10 + halvings


class ScaledAfterADeath:
    """Loses its second rank the first time."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, value: int, halvings: int) -> int:
        if os.environ["RANK"] == "1":
            die_once(self.marker)
        return scaled_on_ranks(value, halvings)


def search_by_itself(folder: Path, value: float) -> list[float]:
    """A search in a process of the cluster, as steps are; the scores of its trials."""
    from cluster.config import RetryConfig, SearchConfig, TrialConfig
    from cluster.interface import SearchPlan
    from cluster.ray_cluster import RayCluster

    folder.mkdir()
    config = SearchConfig(trials=2, space={"x": value, "epochs": 2})
    results = RayCluster(RetryConfig()).run_trials(
        ToyTrial,
        {"starts": folder / "starts"},
        SearchPlan(
            *(config, TrialConfig()),
            name=folder.name,
            metric="score",
            max_epochs=2,
            slots=lambda: 1,
            course=apart,
        ),
        directory=str(folder / "search"),
        log=folder / f"{folder.name}.log",
        on_result=lambda trial, metrics: None,
    )
    started = (folder / "starts").read_text(encoding="utf-8").split()[::2]
    return [*map(float, started), *(result.history[-1]["score"] for result in results)]


class LeavingError(RuntimeError):
    """By this name a gang tells that its node is about to go."""


class GangOfSteps:
    """Counts to `steps`, one every `pause_s`, going on from the folder's last number.

    Each rank appends `step world_size node time` to its line file; rank 0 keeps the count.
    """

    def __init__(self, folder: Path, steps: int, pause_s: float = 0.1) -> None:
        self.folder, self.steps, self.pause_s = folder, steps, pause_s

    def __call__(self, reporter: Reporter) -> None:
        import ray
        import torch.distributed as dist
        from torch import tensor

        rank, size = dist.get_rank(), dist.get_world_size()
        (self.folder / f"pid{rank}").write_text(str(os.getpid()))
        saved = self.folder / "saved"
        node = ray.get_runtime_context().get_node_id()
        start = int(saved.read_text()) if saved.exists() else 0
        for step in range(start, self.steps):
            total = tensor(1.0)
            dist.all_reduce(total)
            assert total == size
            with (self.folder / f"steps{rank}").open("a") as file:
                file.write(f"{step} {size} {node} {time.time()}\n")
            self.after_step(step, rank, reporter)
            time.sleep(self.pause_s)

    def after_step(self, step: int, rank: int, reporter: Reporter) -> None:
        if rank == 0:
            scratch = self.folder / "saving"
            scratch.write_text(str(step + 1))
            scratch.replace(self.folder / "saved")
        if reporter.is_leaving():
            raise LeavingError(f"saved after step {step}")


class GangThatWatches(GangOfSteps):
    """Ends a rank that makes no step for `least_s` seconds."""

    def __init__(self, folder: Path, steps: int, least_s: float) -> None:
        super().__init__(folder, steps)
        self.least_s = least_s

    def __call__(self, reporter: Reporter) -> None:
        from trainers.deadline import Deadline

        with Deadline(self.least_s) as self.deadline:
            super().__call__(reporter)

    def after_step(self, step: int, rank: int, reporter: Reporter) -> None:
        super().after_step(step, rank, reporter)
        self.deadline.beat()


class ToyTrialOnADevice(ToyTrial):
    """Writes down on which GPU each epoch ran, and when."""

    def step(self) -> dict[str, float]:
        began = time.time()
        metrics = super().step()
        with Path(self.shared["epochs"]).open("a") as file:
            device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
            file.write(f"{os.getpid()} {device} {began} {time.time()}\n")
        return metrics
