"""Trials of two workers: real gangs on a real Ray with two CPUs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from toys import ScaledAfterADeath, ToyTrialOfRanks, apart, scaled_on_ranks

from cluster import searchers
from cluster.config import GangConfig, SearchConfig, TrialConfig
from cluster.interface import SearchPlan, TaskFailedError, TrialResult
from cluster.ray_cluster import RayCluster
from cluster.space import Branches

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TWO = TrialConfig(workers=2)


def search_all(
    cluster: RayCluster, folder: Path, config: SearchConfig, directory: str | None = None
) -> list[TrialResult]:
    return cluster.run_trials(
        ToyTrialOfRanks,
        {"starts": folder / "starts", "marker": folder / "died"},
        SearchPlan(
            config, TWO, name="search", metric="score", max_epochs=4, slots=lambda: 1, course=apart
        ),
        directory=directory or str(folder / "search"),
        log=folder / "log",
        on_result=lambda trial, metrics: None,
    )


def search(
    cluster: RayCluster, folder: Path, config: SearchConfig, directory: str | None = None
) -> dict[Any, TrialResult]:
    """What became of each `x`."""
    results = search_all(cluster, folder, config, directory)
    return {result.hyperparameters["x"]: result for result in results}


def held() -> float:
    """CPUs that somebody holds."""
    free: float = ray.available_resources().get("CPU", 0.0)
    total: float = ray.cluster_resources()["CPU"]
    return total - free


def comes_true(condition: Callable[[], bool], within_s: float = 30.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_ranks_train_every_trial_together(cluster: RayCluster, tmp_path: Path) -> None:
    values = [-1, -5, 5, -7]
    config = SearchConfig(trials=4, searcher="grid", space={"x": values, "epochs": 3})
    by_x = search(cluster, tmp_path, config)
    assert [epoch["total"] for epoch in by_x[5].history] == [15.0, 30.0, 45.0]
    assert by_x[5].status == "finished"
    # What a rank raised ends its trial and no other.
    assert (by_x[-1].status, by_x[-1].error) == ("failed", "ValueError: minus one")
    # Out of memory: begun again from the first epoch, with less at a time.
    assert by_x[-5].status == "finished"
    assert [epoch["total"] for epoch in by_x[-5].history] == [-15.0, -30.0, -45.0]
    assert [epoch["halvings"] for epoch in by_x[-5].history] == [0.0, 1.0, 1.0]
    # A rank that was lost before there was anything to go on with.
    assert (tmp_path / "died_at_start").exists()
    assert [epoch["total"] for epoch in by_x[-7].history] == [-21.0, -42.0, -63.0]
    assert comes_true(lambda: held() == 0)
    # Of each trial that saved anything no more than the last checkpoint, of the last trial two.
    assert len(list((tmp_path / "search" / "gangs").iterdir())) <= 3 + 1


def test_a_trial_that_falls_behind_leaves_its_workers_to_the_next(
    cluster: RayCluster, tmp_path: Path
) -> None:
    config = SearchConfig(
        trials=3, searcher="grid", scheduler="asha", space={"x": [3, 2, 4], "epochs": 4}
    )
    found = search(cluster, tmp_path, config)
    assert {x: result.status for x, result in found.items()} == {
        3: "finished",
        2: "stopped",
        4: "finished",
    }
    assert comes_true(lambda: held() == 0)


def test_workers_that_were_at_it_when_the_time_was_over_are_free_again(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Branches({"quick": {"pause_s": 0.0}, "slow": {"pause_s": 300.0}})
    config = SearchConfig(
        trials=2, searcher="grid", max_hours=1, space={"x": 1, "epochs": 1, "pace": pace}
    )
    starts = tmp_path / "starts"

    def both_have_begun(_: object) -> bool:
        return starts.exists() and len(starts.read_text().splitlines()) == 4

    monkeypatch.setattr(searchers.Deadline, "stop_all", both_have_begun)
    results = search_all(cluster, tmp_path, config)
    assert [result.status for result in results] == ["finished", "cut"]
    # Tune kills who does not stop; Ray itself would keep their place to the end of the run.
    assert comes_true(lambda: held() == 0)


def test_the_state_of_ranks_goes_over_an_object_store(
    cluster: RayCluster, tmp_path: Path, s3: str
) -> None:
    """A rank that the cluster lost: gone on with from the epoch before."""
    config = SearchConfig(trials=1, space={"x": -6, "epochs": 3})
    found = search(cluster, tmp_path, config, f"{s3}/search")
    assert (tmp_path / "died").exists()
    assert [epoch["total"] for epoch in found[-6].history] == [-18.0, -36.0, -54.0]


def test_a_function_of_a_gang_for_each_item(cluster: RayCluster, tmp_path: Path) -> None:
    """The first loses its gang and is computed again, the second runs out of memory."""
    found = cluster.map_on_gangs(
        ScaledAfterADeath(tmp_path / "died"),
        [1, -5],
        GangConfig(workers=2),
        directory=str(tmp_path / "ray"),
        log=tmp_path / "log",
    )
    assert found == [20, -99]
    assert (tmp_path / "died").exists()
    assert comes_true(lambda: held() == 0)


def test_an_item_that_raises_ends_all(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(TaskFailedError, match="KeyError: 'minus one'"):
        cluster.map_on_gangs(
            scaled_on_ranks,
            [-1, 3],
            GangConfig(workers=2),
            directory=str(tmp_path / "ray"),
            log=tmp_path / "log",
        )
    assert comes_true(lambda: held() == 0)
