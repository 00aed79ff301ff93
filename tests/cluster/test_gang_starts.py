"""Gangs of which a worker dies while the others are being started: Ray Train gives up on them."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError
from toys import gang_sum

from cluster import gang, ray_cluster
from cluster.config import GangConfig, RetryConfig
from cluster.interface import TaskFailedError, WorkerLostError

Fit = Callable[[], None]


def falls_over(cause: Exception) -> Fit:
    def fit() -> None:
        raise ControllerError(cause)

    return fit


def ends_well() -> None:
    """The gang has done its work."""


def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fits: list[Fit], retry: Any) -> int:
    """How many of the starts were needed."""
    left = iter(fits)

    class Trainer:
        def __init__(self, function: object, *, run_config: Any, **_: object) -> None:
            pickle.dumps(run_config.callbacks)  # the judge goes to the controller

        def fit(self) -> None:
            next(left)()

    monkeypatch.setattr(gang, "_Trainer", Trainer)
    gang.run(
        gang_sum,
        GangConfig(workers=2),
        retry,
        name="gang",
        directory=str(tmp_path),
        log=tmp_path / "log",
        on_report=print,
    )
    return len(fits) - len(list(left))


def test_two_of_ray_trains_processes_are_not_started() -> None:
    """Those that it starts for itself; where it calls them otherwise, this tells."""
    left_out = {"DatasetsCallback", "PlacementGroupCleanerCallback"}

    def of(trainer: type[TorchTrainer]) -> set[str]:
        made = trainer(print, scaling_config=ScalingConfig(num_workers=1))
        return {type(callback).__name__ for callback in made._create_default_callbacks()}

    assert of(TorchTrainer) - of(gang._Trainer) == left_out


def test_on_a_local_ray_nobody_watches_for_nodes_that_go(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    for before, within in ((None, "0"), ("1", "1")):
        if before is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, before)
        with ray_cluster._nobody_watches():
            assert os.environ[name] == within
        assert os.environ.get(name) == before


TWICE = RetryConfig(max_attempts=2, delay_s=0.0)


def test_a_worker_that_died_at_the_start_costs_an_attempt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fits = [falls_over(ActorDiedError()), ends_well, ends_well]
    assert started(monkeypatch, tmp_path, fits, TWICE) == 2


@pytest.mark.parametrize("retry", [None, TWICE])
def test_so_many_attempts_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, retry: RetryConfig | None
) -> None:
    attempts = retry.max_attempts if retry else 1
    fits = [falls_over(ActorDiedError())] * attempts + [ends_well]
    with pytest.raises(WorkerLostError, match="actor died unexpectedly"):
        started(monkeypatch, tmp_path, fits, retry)


@pytest.mark.parametrize("cause", [TaskFailedError.of(KeyError("x")), WorkerLostError("often")])
def test_what_the_judge_raised_is_final(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cause: Exception
) -> None:
    with pytest.raises(type(cause), match=str(cause)):
        started(monkeypatch, tmp_path, [falls_over(cause), ends_well], TWICE)


def test_what_else_breaks_the_controller_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(WorkerLostError, match="ValueError: a bug"):
        started(monkeypatch, tmp_path, [falls_over(ValueError("a bug")), ends_well], TWICE)
