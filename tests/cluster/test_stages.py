"""What trials share, and what is kept of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from ray.tune.search import Searcher
from toys import CountingTrial, CountingTrialWhoseStoreHangsUp, apart, together

from cluster import folders, point_list, stages
from cluster.config import SearchConfig, TrialConfig
from cluster.interface import SearchPlan, TrialResult
from cluster.point_list import PointList
from cluster.ray_cluster import RayCluster
from cluster.results import EPOCH
from cluster.stages import Course, Stages


def parting(point: Mapping[str, Any]) -> list[Any]:
    """Points that differ in the number of epochs alone share them but for the last."""
    begin = [{**point, "epochs": None}] * (point["epochs"] - 1)
    return [*begin, dict(point)]


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    point_list.kept.set(Stages("", frozenset()))


SHORT, LONG, OTHER = ({"x": x, "epochs": epochs} for x, epochs in ((1, 2), (1, 4), (2, 2)))


def test_trials_part_where_one_ends_and_where_their_points_say_so() -> None:
    short, long, other = (stages.keys_of(together, point) for point in (SHORT, LONG, OTHER))
    assert long[:2] == short
    assert not set(long) & set(other)
    assert stages.length_shared(short, long) == 2
    assert stages.length_shared(short, other) == 0
    assert stages.forks(together, [SHORT, LONG, OTHER, LONG]) == frozenset()
    assert stages.forks(parting, [SHORT, LONG, OTHER]) == {stages.keys_of(parting, SHORT)[0]}
    assert stages.forks(apart, [SHORT, LONG, OTHER]) == frozenset()


def test_a_stage_has_its_metrics_and_its_state_as_long_as_it_is_needed(tmp_path: Path) -> None:
    kept = Stages(str(tmp_path), forks=frozenset({"a"}))
    seen: list[str] = []

    def save(folder: Path) -> None:
        (folder / "state").write_text("state")

    def load(folder: Path) -> None:
        seen.append((folder / "state").read_text())

    assert kept.histories(["a", "b"]) == []
    assert kept.load(["a", "b"], load) == 0
    kept.write("a", {"score": 1.0}, save)
    kept.write("b", {"score": 2.0}, save)
    kept.write("c", {"score": 3.0})
    assert kept.histories(["a", "b", "c", "d"]) == [{"score": n} for n in (1.0, 2.0, 3.0)]
    assert kept.load(["a", "b", "c"], load) == 2
    for key in "abc":
        kept.drop(key)
    assert kept.load(["a", "b", "c"], load) == 1  # others go on from it
    assert seen == ["state", "state"]
    assert len(list(tmp_path.rglob("state"))) == 1


def test_states_for_others_go_with_the_last_of_those(tmp_path: Path) -> None:
    kept = Stages(str(tmp_path), stages.forks(parting, [SHORT, LONG, OTHER]))
    (fork,) = kept.forks
    point_list.kept.set(kept)
    points = PointList([SHORT, LONG, OTHER], parting)
    kept.write(fork, {"score": 1.0}, lambda folder: (folder / "state").touch())
    for trial, point, left in (("a", SHORT, 1), ("b", LONG, 0), ("c", OTHER, 0)):
        assert points.suggest(trial) == {"point": point}
        points.on_trial_complete(trial)
        assert len(list(tmp_path.rglob("state"))) == left
    assert kept.histories([fork]) == [{"score": 1.0}]


class HungUpError(Exception):
    """Of a store's client: no `OSError`."""


class UnreachableStore(AbstractFileSystem):  # type: ignore[misc]
    protocol = "unreachable"

    def _open(self, *_: Any, **__: Any) -> Any:
        raise HungUpError("connection refused")

    info = ls = exists = pipe_file = cat_file = _open


def test_a_store_that_cannot_be_reached_is_an_error_of_the_system() -> None:
    fsspec.register_implementation("unreachable", UnreachableStore, clobber=True)
    kept = Stages("unreachable://bucket/search", frozenset())
    for act in (
        lambda: kept.histories(["a"]),
        lambda: kept.write("a", {}),
        lambda: folders.exists(kept.directory),
        lambda: folders.remove(kept.directory),
        lambda: folders.read(kept.directory, lambda _: None),
        lambda: folders.write(kept.directory, lambda folder: (folder / "a").touch()),
    ):
        with pytest.raises(OSError, match="HungUpError: connection refused"):
            act()


def test_points_wait_for_what_others_train_for_them() -> None:
    points = PointList([SHORT, LONG, OTHER], together)
    assert points.suggest("a") == {"point": LONG}  # SHORT is then a part of it
    assert points.suggest("b") == {"point": OTHER}
    points.on_trial_complete("b")
    assert points.suggest("c") is None
    points.on_trial_result("a", {EPOCH: 1})
    assert points.suggest("c") is None
    points.on_trial_result("a", {EPOCH: 2})
    assert points.suggest("c") == {"point": SHORT}
    assert points.suggest("d") == Searcher.FINISHED


def test_a_longer_point_that_must_wait_does_not_take_the_turn_of_a_shorter() -> None:
    short, longer, longest = ({"x": 1, "epochs": epochs} for epochs in (2, 4, 8))
    points = PointList([short, longer, longest], together)
    assert points.suggest("a") == {"point": longest}
    points.on_trial_result("a", {EPOCH: 3})
    assert points.suggest("b") == {"point": short}
    points.on_trial_complete("b")
    assert points.suggest("c") is None
    points.on_trial_result("a", {EPOCH: 4})
    assert points.suggest("c") == {"point": longer}


def test_points_that_share_nothing_keep_their_order() -> None:
    points = PointList([SHORT, LONG, OTHER], apart)
    given = [points.suggest(name)["point"] for name in "abc"]
    assert given == [SHORT, LONG, OTHER]


def test_a_list_of_points_goes_on_where_it_was(tmp_path: Path) -> None:
    points = PointList([SHORT, LONG, OTHER], together)
    points.suggest("a")
    points.save(str(tmp_path / "state"))
    again = PointList([SHORT, LONG, OTHER], together)
    again.restore(str(tmp_path / "state"))
    assert again.suggest("b") == {"point": OTHER}


def search(
    cluster: RayCluster,
    folder: Path,
    space: Mapping[str, Any],
    slots: int,
    course: Course,
    trial: type[CountingTrial] = CountingTrial,
) -> tuple[list[TrialResult], list[Any]]:
    """All combinations, and every epoch that was trained: process, x, epoch."""
    trials = len(space["x"]) * len(space["epochs"])
    config = SearchConfig(trials=trials, searcher="grid", space=dict(space))
    results = cluster.run_trials(
        trial,
        {"trained": folder / "trained"},
        SearchPlan(
            *(config, TrialConfig()),
            name="search",
            metric="score",
            max_epochs=4,
            slots=lambda: slots,
            course=course,
        ),
        directory=str(folder / "search"),
        log=folder / "log",
        on_result=lambda trial, metrics: None,
    )
    lines = (folder / "trained").read_text().splitlines()
    return results, [json.loads(line) for line in lines]


@pytest.mark.ray
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("course", [together, parting])
def test_no_epoch_is_trained_twice(
    cluster: RayCluster, tmp_path: Path, course: Course, slots: int
) -> None:
    space = {"x": [1, 2], "epochs": [1, 4, 2, 3]}
    results, trained = search(cluster, tmp_path, space, slots, course)
    assert {result.status for result in results} == {"finished"}
    for result in results:
        x, epochs = result.hyperparameters["x"], result.hyperparameters["epochs"]
        assert [epoch["score"] for epoch in result.history] == [x * n for n in range(1, epochs + 1)]
    # Of each x a trunk; where trials part, another last epoch of each but the longest.
    last = [] if course is together else [1, 2, 3]
    assert sorted([x, epoch] for _, x, epoch in trained) == [
        [x, epoch] for x in (1, 2) for epoch in sorted([1, 2, 3, 4, *last])
    ]
    assert list((tmp_path / "search" / "stages").rglob("sum")) == []  # nobody needs a state now


@pytest.mark.ray
def test_a_state_that_the_store_refuses_for_the_moment_is_read_again(
    cluster: RayCluster, tmp_path: Path
) -> None:
    space = {"x": [1], "epochs": [2, 3]}
    trial = CountingTrialWhoseStoreHangsUp
    results, trained = search(cluster, tmp_path, space, 1, parting, trial)
    assert (tmp_path / "hung_up").exists()
    assert {result.status for result in results} == {"finished"}
    assert sorted(epoch for _, _, epoch in trained) == [1, 2, 2, 3]
