"""One search of trials that do nothing: Pretune's, or one of Ray Tune's own forms.

    python benchmarks/scale/subject.py SUBJECT TRIALS FOLDER [--die-after RESULTS]

- `pretune`: `RayCluster.run_trials`, as the step `tune` calls it;
- `class`: a class trainable with `reuse_actors`, checkpoints after each epoch, Tune's loggers off;
- `bare`: the same without checkpoints;
- `function`: the function trainable of Ray Tune's documentation with Tune's defaults, which saves
  nothing.

Every trial draws `x` and scores `x` times its epoch, in at most nine epochs; ASHA stops most, with
rungs after 1, 2, 4 and 8. Two trials at once. Ray runs before the clock starts. Prints a JSON line.
"""

import argparse
import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cluster import trials  # noqa: F401 -- imported before the clock starts, as Ray Tune is
from cluster.config import RetryConfig, SearchConfig, TrialConfig
from cluster.interface import Metrics, SearchPlan
from cluster.ray_cluster import RayCluster
from cluster.space import Range

EPOCHS = 9
SLOTS = 2
METRIC = "score"


class NoOp:
    """Implements `cluster.interface.Trial`."""

    def __init__(self, shared: str) -> None:
        self._trained = Path(shared)
        self._x, self._epoch = 0.0, 0

    @property
    def is_finished(self) -> bool:
        """After nine epochs."""
        return self._epoch >= EPOCHS

    def start(self, hyperparameters: Mapping[str, Any], *, halvings: int = 0) -> None:
        """Nothing to do."""
        self._x, self._epoch = hyperparameters["x"], 0

    def step(self) -> dict[str, float]:
        """Writes down that an epoch was trained, to tell what was trained twice."""
        self._epoch += 1
        with (self._trained / str(os.getpid())).open("a", encoding="utf-8") as file:
            file.write(f"{self._x} {self._epoch}\n")
        return {METRIC: self._x * self._epoch}

    def save(self, directory: Path) -> None:
        """What there is."""
        (directory / "epoch").write_text(str(self._epoch), encoding="utf-8")

    def load(self, directory: Path) -> None:
        """What `save` wrote."""
        self._epoch = int((directory / "epoch").read_text(encoding="utf-8"))


class NoOpClass(tune.Trainable):  # type: ignore[misc]
    """The same for Ray Tune."""

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing to do."""

    def step(self) -> dict[str, Any]:
        """One epoch."""
        return {
            METRIC: self.config["x"] * (self.iteration + 1),
            "done": self.iteration + 1 >= EPOCHS,
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial."""
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The same file."""
        (Path(checkpoint_dir) / "epoch").write_text(str(self.iteration), encoding="utf-8")

    def load_checkpoint(self, checkpoint: str) -> None:
        """Nothing to do."""


def no_op_function(config: dict[str, Any]) -> None:
    """The same as a function."""
    for epoch in range(1, EPOCHS + 1):
        tune.report({METRIC: config["x"] * epoch})


def search_with_pretune(number: int, folder: Path, heard: Callable[[], None]) -> list[int]:
    """Epochs of each trial."""
    trained = folder / "trained"
    trained.mkdir(exist_ok=True)
    space: Any = {"x": Range(uniform=(0.0, 1.0))}
    results = RayCluster(RetryConfig()).run_trials(
        NoOp,
        str(trained),
        SearchPlan(
            SearchConfig(trials=number, scheduler="asha", space=space),
            TrialConfig(),
            name="search",
            metric=METRIC,
            max_epochs=EPOCHS,
            slots=lambda: SLOTS,
            course=course,
        ),
        directory=str(folder),
        log=folder / "log",
        on_result=lambda *_: heard(),
    )
    return [len(result.history) for result in results]


def course(point: Mapping[str, Any]) -> list[Metrics]:
    """Trials share nothing."""
    return [dict(point)] * EPOCHS


def search_with_tune(kind: str, number: int, folder: Path, heard: Callable[[], None]) -> list[int]:
    """Epochs of each trial."""
    generator = random.Random(0)
    points = [generator.random() for _ in range(number)]
    is_class = kind != "function"
    if is_class:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    checkpoints = tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1)
    tuner = tune.Tuner(
        tune.with_resources(NoOpClass if is_class else no_op_function, {"cpu": 1}),
        param_space={"x": tune.grid_search(points)},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=tune.schedulers.ASHAScheduler(max_t=EPOCHS, reduction_factor=2),
            max_concurrent_trials=SLOTS,
            reuse_actors=is_class,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            verbose=0,
            checkpoint_config=checkpoints if kind == "class" else tune.CheckpointConfig(),
            callbacks=[Heard(heard)],
        ),
    )
    return [(result.metrics or {}).get("training_iteration", 0) for result in tuner.fit()]


class Heard(tune.Callback):  # type: ignore[misc]
    """Tells of each result."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """Called by Tune."""
        self._heard()


class Clock:
    """When results came, and how much memory this process had then."""

    def __init__(self, die_after: int | None) -> None:
        self._die_after = die_after
        self.started = time.monotonic()
        self.times: list[float] = []
        self.memory_mb: list[float] = []

    def __call__(self) -> None:
        """A result came."""
        self.times.append(time.monotonic() - self.started)
        if len(self.times) % 100 == 1:
            self.memory_mb.append(round(resident_mb(), 1))
        if len(self.times) == self._die_after:
            os.kill(os.getpid(), signal.SIGKILL)


def resident_mb() -> float:
    """Of this process, the driver."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("pretune", "class", "bare", "function"))
    parser.add_argument("trials", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-after", type=int)
    given = parser.parse_args()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(address="local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    clock = Clock(given.die_after)
    if given.kind == "pretune":
        epochs = search_with_pretune(given.trials, given.folder, clock)
    else:
        epochs = search_with_tune(given.kind, given.trials, given.folder, clock)
    seconds = time.monotonic() - clock.started
    print(
        json.dumps(
            {
                "seconds": seconds,
                "first_s": clock.times[0],
                "trials": len(epochs),
                "epochs": sum(epochs),
                "memory_mb": clock.memory_mb,
            }
        ),
        flush=True,
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
