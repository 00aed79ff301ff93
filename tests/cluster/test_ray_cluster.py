"""The cluster protocol on a real local Ray."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
from ray import cloudpickle
from toys import (
    GangWithOneDeath,
    ToyTrial,
    apart,
    die,
    die_once,
    double,
    fail,
    gang_rank_raises,
    gang_sum,
    search_by_itself,
    write_to,
)

from cluster.config import (
    GangConfig,
    SearchConfig,
    TrialConfig,
)
from cluster.interface import Metrics, SearchPlan, TaskFailedError, TrialResult, WorkerLostError
from cluster.ray_cluster import RayCluster, RayPending
from cluster.space import Branches, Range

pytestmark = pytest.mark.ray

ONE = TrialConfig()
TWO = GangConfig(workers=2)


def test_function_runs_elsewhere_and_prints_to_its_log(cluster: RayCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pending = cluster.submit(double, 21, log=log)
    assert pending.result().unwrap() == 42
    assert log.read_text() == "doubling 21\n"


def test_what_is_shown_is_read_by_prometheus(cluster: RayCluster) -> None:
    cluster.show("steps", 3, {"pipeline": "tiny", "state": "done"})
    cluster.show("steps", 4, {"pipeline": "tiny", "state": "done"})
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 60
    found: list[str] = []
    while not found and time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
            found = [line for line in lines if line.startswith("ray_pretune_steps{")]
        time.sleep(1)
    (line,) = found
    assert 'pipeline="tiny"' in line
    assert 'state="done"' in line
    assert float(line.split()[-1]) == 4


def test_exception_comes_back_as_text_and_its_traceback_is_in_the_log(
    cluster: RayCluster, tmp_path: Path
) -> None:
    outcome = cluster.submit(fail, "x", log=tmp_path / "log").result()
    assert isinstance(outcome.error, TaskFailedError)
    assert str(outcome.error) == "KeyError: 'x'"
    assert "toys.py" in (tmp_path / "log").read_text()


def test_killed_process_is_a_lost_worker(cluster: RayCluster, tmp_path: Path) -> None:
    outcome = cluster.submit(die, None, log=tmp_path / "log").result()
    assert isinstance(outcome.error, WorkerLostError)


def test_work_that_has_ended_is_not_cancelled(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would end this process now and then, on a busy machine in one of some hundred cases."""
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "cancel", lambda reference, **_: cancelled.append(reference))
    ended = cluster.submit(double, 1, log=tmp_path / "log")
    ended.result()
    at_work = cluster.submit(time.sleep, 1, log=tmp_path / "log")
    cluster.cancel([ended, at_work])
    assert isinstance(at_work, RayPending)
    assert cancelled == [at_work.reference]
    cluster.cancel([])


def test_node_that_does_not_answer_in_time_counts_as_lost(cluster: RayCluster) -> None:
    (late,) = cluster.on_every_node(time.sleep, 600, timeout_s=0.5).values()
    assert isinstance(late.error, WorkerLostError)
    assert str(late.error) == "no answer within 0.5 s"
    (in_time,) = cluster.on_every_node(double, 21, timeout_s=60).values()
    assert in_time.unwrap() == 42


def test_map_starts_a_lost_item_again_and_keeps_the_order(
    cluster: RayCluster, tmp_path: Path
) -> None:
    items = [tmp_path / str(number) for number in range(3)]
    items[0].touch()
    items[2].touch()
    assert cluster.map(die_once, items, ONE, tmp_path / "log") == ["survived"] * 3


def test_map_gives_up_on_what_is_lost_too_often(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(WorkerLostError, match="WorkerCrashedError"):
        cluster.map(die, [1], ONE, tmp_path / "log")


def test_map_raises_what_an_item_raised(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(TaskFailedError, match="KeyError"):
        cluster.map(fail, ["x"], ONE, tmp_path / "log")


def run_gang(cluster: RayCluster, function: object, folder: Path) -> list[str]:
    cluster.run_gang(
        function,  # type: ignore[arg-type]
        TWO,
        name="gang",
        directory=str(folder / "ray"),
        log=folder / "gang.log",
        on_report=partial(write_to, folder / "reports"),
    )
    return (folder / "reports").read_text().split()


def test_gang_works_together_and_rank_0_reports(cluster: RayCluster, tmp_path: Path) -> None:
    assert run_gang(cluster, gang_sum, tmp_path) == ["3"]
    for rank in range(2):
        assert f"rank {rank} of 2" in (tmp_path / f"gang.rank{rank}.log").read_text()


def test_gang_is_started_again_when_a_rank_dies(cluster: RayCluster, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    assert run_gang(cluster, GangWithOneDeath(marker), tmp_path) == ["3"]
    assert marker.exists()


def test_gang_ends_when_a_rank_raises(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(TaskFailedError, match="KeyError: 'rank 1'"):
        run_gang(cluster, gang_rank_raises, tmp_path)


def search(
    cluster: RayCluster,
    folder: Path,
    config: SearchConfig,
    directory: str = "search",
    **more: Any,
) -> tuple[list[TrialResult], list[Metrics], list[str]]:
    reports: list[Metrics] = []
    starts = folder / "starts"
    results = cluster.run_trials(
        ToyTrial,
        {"starts": starts, "marker": folder / "died"},
        SearchPlan(
            *(config, ONE),
            name="search",
            metric="score",
            max_epochs=4,
            course=apart,
            **{"slots": lambda: 1, **more},
        ),
        directory=str(folder / directory),
        log=folder / "log",
        on_result=lambda trial, metrics: reports.append(metrics),
    )
    return results, reports, starts.read_text().splitlines()


def test_search_shares_one_process_and_isolates_bad_trials(
    cluster: RayCluster, tmp_path: Path
) -> None:
    config = SearchConfig(trials=12, space={"x": [-1, -2, 5], "epochs": 3}, seed=1)
    results, reports, starts = search(cluster, tmp_path, config)
    assert len(results) == 12
    by_x = {result.hyperparameters["x"]: result for result in results}
    assert by_x[-1].status == "failed"
    assert by_x[-1].error == "ValueError: minus one"
    assert by_x[-2].status == "failed"
    assert "not finite" in str(by_x[-2].error)
    assert by_x[5].status == "finished"
    assert [epoch["score"] for epoch in by_x[5].history] == [5.0, 10.0, 15.0]
    assert {report["epoch"] for report in reports} == {1, 2, 3}
    assert len({line.split()[1] for line in starts}) == 1


def test_asha_stops_what_falls_behind(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(
        trials=8, scheduler="asha", space={"x": Range(uniform=(1.0, 9.0)), "epochs": 4}
    )
    results, _, _ = search(cluster, tmp_path, config)
    statuses = {result.status for result in results}
    assert statuses == {"finished", "stopped"}
    best = max(results, key=lambda result: result.hyperparameters["x"])
    assert best.status == "finished"


def test_tpe_is_given_constants_and_ranges(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(
        trials=3,
        searcher="tpe",
        space={"x": Range(loguniform=(1.0, 9.0)), "epochs": 2, "choice": ["a", "b"]},
    )
    results, _, _ = search(cluster, tmp_path, config)
    for result in results:
        assert result.status == "finished"
        assert 1.0 <= result.hyperparameters["x"] <= 9.0
        assert result.hyperparameters["epochs"] == 2
        assert result.hyperparameters["choice"] in {"a", "b"}


def test_grid_tries_every_combination_once(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(
        trials=6, searcher="grid", space={"x": [1, 2, 5], "epochs": 1, "choice": ["a", "b"]}
    )
    results, _, _ = search(cluster, tmp_path, config)
    points = [(r.hyperparameters["x"], r.hyperparameters["choice"]) for r in results]
    assert sorted(points) == [(x, choice) for x in (1, 2, 5) for choice in ("a", "b")]


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_steps_of_a_range_are_kept(
    cluster: RayCluster, tmp_path: Path, searcher: Literal["random", "tpe"]
) -> None:
    config = SearchConfig(
        trials=5, searcher=searcher, space={"x": Range(quniform=(0.5, 2.0, 0.5)), "epochs": 1}
    )
    results, _, _ = search(cluster, tmp_path, config)
    assert {r.hyperparameters["x"] for r in results} <= {0.5, 1.0, 1.5, 2.0}


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_trials_have_the_hyperparameters_of_their_branch_alone(
    cluster: RayCluster, tmp_path: Path, searcher: Literal["random", "tpe"]
) -> None:
    branches = Branches({"a": {"x": Range(uniform=(1.0, 2.0))}, "b": {"x": 5, "y": [1, 2]}})
    config = SearchConfig(trials=8, searcher=searcher, space={"kind": branches, "epochs": 1})
    results, _, _ = search(cluster, tmp_path, config)
    found = [result.hyperparameters for result in results]
    assert {point["kind"] for point in found} == {"a", "b"}
    for point in found:
        is_a = point["kind"] == "a"
        assert set(point) == {"kind", "epochs", "x"} | (set() if is_a else {"y"})
        assert 1.0 <= point["x"] <= 2.0 if is_a else point["x"] == 5


def test_searches_that_begin_at_once_train_each_their_own(
    cluster: RayCluster, tmp_path: Path
) -> None:
    values = [3.0, 4.0, 5.0, 6.0]
    pending = [
        cluster.submit(search_by_itself, tmp_path / f"task{n}", value, log=tmp_path / f"log{n}")
        for n, value in enumerate(values)
    ]
    found = [one.result().unwrap() for one in pending]
    # Both trials of a search are the same: the second one needs no training.
    assert found == [[value, 2 * value, 2 * value] for value in values]


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_search_goes_on_from_one_with_fewer_trials(
    cluster: RayCluster, tmp_path: Path, searcher: Literal["random", "tpe"]
) -> None:
    few = SearchConfig(
        trials=3,
        searcher=searcher,
        scheduler="asha",
        space={"x": Range(uniform=(1.0, 9.0)), "epochs": 4},
    )
    earlier, _, begun = search(cluster, tmp_path, few, "few")
    more = few.model_copy(update={"trials": 6})
    results, _, starts = search(cluster, tmp_path, more, "more", earlier=earlier)
    assert results[:3] == earlier
    assert len(results) == 6
    assert len(starts) == len(begun) + 3
    points = [result.hyperparameters["x"] for result in results]
    assert len(set(points)) == 6
    if searcher == "random":
        assert points == [point["x"] for point in more.points()]
    again, reports, starts = search(cluster, tmp_path, more, "more", earlier=results)
    assert again == results
    assert reports == []
    assert len(starts) == len(begun) + 3


def sum_of_course(result: TrialResult, epochs: int) -> float:
    """Of the values of `x` that held in each epoch, as the trial's line of descent tells them."""
    course = [(0, result.hyperparameters), *result.changes]
    return sum(
        next(point["x"] for begun, point in reversed(course) if begun <= epoch)
        for epoch in range(epochs)
    )


def test_population_goes_on_from_its_best(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(
        trials=4, scheduler="pbt", space={"x": Range(uniform=(1.0, 9.0)), "epochs": 12}
    )
    results, _, _ = search(cluster, tmp_path, config, may_change=["x"])
    assert [result.status for result in results] == ["finished"] * 4
    drawn = [point["x"] for point in config.points()]
    assert [(result.drawn or result.hyperparameters)["x"] for result in results] == drawn
    assert any(result.drawn for result in results)  # it descends from another
    assert any(result.changes for result in results)
    for result in results:
        assert result.hyperparameters["x"] in drawn
        assert [epoch for epoch, _ in result.changes] == sorted(e for e, _ in result.changes)
        assert all(1.0 <= point["x"] <= 9.0 for _, point in result.changes)
        # The toy adds up what it was trained with: its weights went with the line of descent.
        assert result.history[-1]["sum"] == pytest.approx(sum_of_course(result, 12))

    more = config.model_copy(update={"trials": 8})
    found, _, _ = search(cluster, tmp_path, more, "more", may_change=["x"], earlier=results)
    assert found[:4] == results
    tried = [(result.drawn or result.hyperparameters)["x"] for result in found]
    assert tried == [point["x"] for point in more.points()]


def test_search_ends_when_its_time_is_over(cluster: RayCluster, tmp_path: Path) -> None:
    xs = list(range(1, 13))
    space = {"x": xs, "epochs": 2, "pause_s": 1.0}
    config = SearchConfig(trials=12, searcher="grid", max_hours=15 / 3600, space=space)
    results, _, starts = search(cluster, tmp_path, config)
    assert {result.status for result in results} <= {"finished", "cut"}
    assert len(results) < 12  # those that were not begun are no results
    assert len(starts) < 12
    for result in results:
        assert (len(result.history) == 2) == (result.status == "finished")
        assert result.hyperparameters["x"] in xs


def test_the_end_of_the_time_waits_for_the_least(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(
        max_hours=0.1 / 3600, least_trials=3, space={"x": Range(uniform=(1.0, 9.0)), "epochs": 2}
    )
    results, _, starts = search(cluster, tmp_path, config)
    assert sum(result.status == "finished" for result in results) in {3, 4}
    assert len(starts) < 6


def test_median_rule_stops_what_is_worse_than_most(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(
        trials=6, scheduler="median", searcher="grid", space={"x": [9, 8, 7, 1, 2, 6], "epochs": 4}
    )
    results, _, _ = search(cluster, tmp_path, config)
    by_x = {r.hyperparameters["x"]: r.status for r in results}
    assert by_x[9] == by_x[8] == "finished"
    assert by_x[1] == by_x[2] == "stopped"


def test_a_search_takes_what_others_have_left_and_gives_it_back(
    cluster: RayCluster, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"

    def begun() -> list[str]:
        return starts.read_text().splitlines() if starts.exists() else []

    config = SearchConfig(
        trials=9,
        searcher="grid",
        space={"x": [*range(1, 10)], "epochs": 2, "pause_s": 1.0},
    )
    found = search(cluster, tmp_path, config, slots=lambda: 2 if 2 <= len(begun()) < 6 else 1)
    results, _, by_process = found
    assert len(results) == 9
    alone, second = by_process[0].split()[1], by_process[2].split()[1]
    assert [line.split()[1] for line in by_process[:3]] == [alone, alone, second]
    assert len({line.split()[1] for line in by_process[-2:]}) == 1


def test_median_rule_pauses_no_trial_while_others_are_begun(
    cluster: RayCluster, tmp_path: Path
) -> None:
    config = SearchConfig(
        trials=4, scheduler="median", searcher="grid", space={"x": [9, 8, 7, 6], "epochs": 4}
    )
    results, _, starts = search(cluster, tmp_path, config, slots=lambda: 2)
    assert {result.status for result in results} <= {"finished", "stopped"}
    assert len(starts) == 4  # none is begun again


def test_lowest_score_survives_where_lower_is_better(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(
        trials=8, scheduler="asha", space={"x": Range(uniform=(1.0, 9.0)), "epochs": 4}
    )
    results = cluster.run_trials(
        ToyTrial,
        {"starts": tmp_path / "starts"},
        SearchPlan(
            config,
            ONE,
            name="search",
            metric="score",
            max_epochs=4,
            slots=lambda: 1,
            course=apart,
            lower_is_better=True,
        ),
        directory=str(tmp_path / "search"),
        log=tmp_path / "log",
        on_result=lambda trial, metrics: None,
    )
    assert {result.status for result in results} == {"finished", "stopped"}
    best = min(results, key=lambda result: result.hyperparameters["x"])
    assert best.status == "finished"


def test_trial_whose_process_dies_goes_on_from_its_last_epoch(
    cluster: RayCluster, tmp_path: Path
) -> None:
    config = SearchConfig(trials=1, space={"x": -3, "epochs": 3})
    results, _, starts = search(cluster, tmp_path, config)
    assert (tmp_path / "died").exists()
    assert results[0].status == "finished"
    assert [epoch["score"] for epoch in results[0].history] == [-3.0, -6.0, -9.0]
    assert len({line.split()[1] for line in starts}) == 2


def test_trial_that_prints_a_gigabyte_ends_well_and_takes_nobodys_memory(
    cluster: RayCluster, tmp_path: Path
) -> None:
    quiet = SearchConfig(trials=1, space={"x": 1, "epochs": 1})
    search(cluster, tmp_path, quiet, "quiet")  # Tune is imported
    before = resident_bytes()
    config = SearchConfig(trials=2, searcher="grid", space={"x": [-4, 1], "epochs": 1})
    results, _, _ = search(cluster, tmp_path, config)
    assert {result.status for result in results} == {"finished"}
    logs = list(tmp_path.glob("log.slot*.log"))
    assert sum(log.stat().st_size for log in logs) > 1 << 30
    for log in logs:
        log.unlink()
    assert resident_bytes() - before < 100 << 20


def resident_bytes() -> int:
    """Of this process, the driver."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_finished_search_is_not_run_again(cluster: RayCluster, tmp_path: Path) -> None:
    config = SearchConfig(trials=3, space={"x": [1, 2], "epochs": 2})
    first, _, starts = search(cluster, tmp_path, config)
    # As a later attempt does: from a copy, in a folder of its own.
    shutil.copytree(tmp_path / "search", tmp_path / "copy")
    shutil.rmtree(tmp_path / "search")
    second, _, starts_after = search(cluster, tmp_path, config, "copy")
    assert starts_after == starts
    assert sorted(r.trial_id for r in second) == sorted(r.trial_id for r in first)
    assert {r.trial_id: r.history for r in second} == {r.trial_id: r.history for r in first}


class InterruptedSearch:
    """Six trials of three epochs, killed after eight epochs; gone on with in a copy."""

    def __init__(
        self,
        cluster: RayCluster,
        folder: Path,
        searcher: Literal["random", "tpe"] = "random",
        scheduler: Literal["none", "pbt"] = "none",
        epochs: int = 3,
    ) -> None:
        self.cluster, self.folder, self.epochs = cluster, folder, epochs
        self.searcher, self.scheduler = searcher, scheduler
        self.told: list[Metrics] = []
        with pytest.raises(Exception, match="the driver dies"):
            self._run("first", stop_after=8)
        shutil.copytree(folder / "first", folder / "second")
        self.snapshot = folder / "second" / "search"

    def go_on(self) -> list[TrialResult]:
        self.told.clear()
        return self._run("second", stop_after=None)

    def starts(self) -> list[str]:
        return [line.split()[0] for line in (self.folder / "starts").read_text().splitlines()]

    def _run(self, directory: str, stop_after: int | None) -> list[TrialResult]:
        def listen(trial: str, metrics: Metrics) -> None:
            self.told.append(metrics)
            if len(self.told) == stop_after:
                raise KeyError("the driver dies")

        config = SearchConfig(
            trials=6,
            searcher=self.searcher,
            scheduler=self.scheduler,
            space={"x": Range(uniform=(1.0, 9.0)), "epochs": self.epochs},
        )
        return self.cluster.run_trials(
            ToyTrial,
            {"starts": self.folder / "starts"},
            SearchPlan(
                *(config, ONE),
                name="search",
                metric="score",
                max_epochs=self.epochs,
                slots=lambda: 1,
                course=apart,
                may_change=["x"],
            ),
            directory=str(self.folder / directory),
            log=self.folder / "log",
            on_result=listen,
        )


def assert_whole(results: list[TrialResult]) -> None:
    assert len(results) == 6
    assert {result.status for result in results} == {"finished"}
    for result in results:
        x = result.hyperparameters["x"]
        assert [epoch["score"] for epoch in result.history] == [x, 2 * x, 3 * x]


def test_interrupted_search_goes_on_and_reports_to_its_new_run(
    cluster: RayCluster, tmp_path: Path
) -> None:
    search = InterruptedSearch(cluster, tmp_path)
    assert_whole(search.go_on())
    assert len(search.told) == 18  # the new run is told of all
    started = search.starts()
    assert started.count(started[0]) == 1  # it was finished when the driver died
    assert len(started) == 7  # the one that was not, twice


def test_interrupted_population_goes_on(cluster: RayCluster, tmp_path: Path) -> None:
    # In so many epochs there is hardly a course in which nothing changes.
    results = InterruptedSearch(cluster, tmp_path, scheduler="pbt", epochs=12).go_on()
    assert [result.status for result in results] == ["finished"] * 6
    assert any(result.changes for result in results)
    for result in results:
        assert result.history[-1]["sum"] == pytest.approx(sum_of_course(result, 12))


def without_snapshots(search: Path) -> None:
    for path in search.glob("*.json"):
        path.unlink()


def with_torn_snapshot(search: Path) -> None:
    (state,) = search.glob("experiment_state-*.json")
    state.write_bytes(state.read_bytes()[:1000])


def with_older_searcher(search: Path) -> None:
    (state,) = search.glob("search_gen_state-*.json")
    searcher = cloudpickle.loads(state.read_bytes())
    searcher["counter"] -= 1
    state.write_bytes(cloudpickle.dumps(searcher))


def without_states(search: Path) -> None:
    for path in search.parent.glob("stages/*/*"):
        if path.is_dir():
            shutil.rmtree(path)


@pytest.mark.parametrize(
    "damage", [without_snapshots, with_torn_snapshot, with_older_searcher, without_states]
)
def test_search_killed_while_it_saved_tries_the_same_points(
    cluster: RayCluster, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    search = InterruptedSearch(cluster, tmp_path)
    damage(search.snapshot)
    results = search.go_on()
    assert_whole(results)
    assert {str(result.hyperparameters["x"]) for result in results} == set(search.starts())


def without_searcher(search: Path) -> None:
    (state,) = search.glob("searcher-state-*.pkl")
    state.unlink()


def with_torn_searcher(search: Path) -> None:
    (state,) = search.glob("searcher-state-*.pkl")
    state.write_bytes(state.read_bytes()[:100])


@pytest.mark.parametrize("damage", [without_snapshots, without_searcher, with_torn_searcher])
def test_search_of_tpe_killed_while_it_saved_ends_whole(
    cluster: RayCluster, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    search = InterruptedSearch(cluster, tmp_path, "tpe")
    damage(search.snapshot)
    assert_whole(search.go_on())


_FOREIGN = """
import os, ray, subprocess, sys
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
ours = '''
from cluster.config import ClusterConfig
from cluster.ray_cluster import connect
import os
with connect(ClusterConfig()) as cluster:
    import ray
    assert ray.get_runtime_context().gcs_address != os.environ["RAY_ADDRESS"]
    print("cpus", cluster.capacity().cpus)
'''
answer = subprocess.run([sys.executable, "-c", ours], capture_output=True, text=True)
print(answer.stdout, answer.stderr[-2000:])
with_address = ours.replace("ClusterConfig()", "ClusterConfig(address=os.environ['RAY_ADDRESS'])")
answer = subprocess.run(
    [sys.executable, "-c", with_address.replace("!=", "==")], capture_output=True, text=True
)
print("joined", answer.stdout, answer.stderr[-2000:])
"""


@pytest.mark.slow
def test_foreign_cluster_is_joined_only_when_its_address_is_given() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _FOREIGN], capture_output=True, text=True, timeout=180, check=True
    )
    assert f"cpus {float(os.cpu_count() or 1)}" in answer.stdout
    assert "joined cpus 3.0" in answer.stdout, answer.stdout
