from pathlib import Path

import pytest
from toys import ToyTrial, apart, double, fail

from cluster.config import GangConfig, SearchConfig, WorkerConfig
from cluster.interface import Metrics, SearchPlan, TaskFailedError
from cluster.local import LocalCluster
from cluster.space import Range


def test_map_keeps_the_order(tmp_path: Path) -> None:
    found = LocalCluster().map(double, [1, 2, 3], WorkerConfig(), tmp_path / "log")
    assert found == [2, 4, 6]


def test_error_is_told_in_text_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    outcome = LocalCluster().submit(fail, "x", log=tmp_path / "log").result()
    assert isinstance(outcome.error, TaskFailedError)
    assert outcome.error.error_type == "KeyError"
    assert "toys.py" in (tmp_path / "log").read_text()
    with pytest.raises(TaskFailedError):
        outcome.unwrap()


def test_gang_runs_as_one_rank(tmp_path: Path) -> None:
    reports: list[Metrics] = []
    LocalCluster().run_gang(
        lambda reporter: reporter.report({"loss": 1.0}),
        GangConfig(workers=8),
        name="gang",
        directory=tmp_path,
        log=tmp_path / "log",
        on_report=reports.append,
    )
    assert reports == [{"loss": 1.0}]


def test_search_tries_every_trial_and_survives_the_one_that_raises(tmp_path: Path) -> None:
    results = LocalCluster().run_trials(
        ToyTrial,
        {"starts": tmp_path / "starts"},
        SearchPlan(
            SearchConfig(trials=20, space={"x": [-1, 1, 2], "epochs": 2}),
            WorkerConfig(),
            name="search",
            metric="score",
            max_epochs=2,
            slots=lambda: 1,
            course=apart,
        ),
        directory=tmp_path,
        log=tmp_path / "log",
        on_result=lambda trial, metrics: None,
    )
    assert len(results) == 20
    by_x = {result.hyperparameters["x"]: result for result in results}
    assert by_x[-1].status == "failed"
    assert by_x[-1].error == "ValueError: minus one"
    assert [epoch["score"] for epoch in by_x[2].history] == [2.0, 4.0]


def test_samples_stay_in_their_range(tmp_path: Path) -> None:
    space = {
        "x": Range(randint=(1, 3)),
        "epochs": 1,
        "a": Range(uniform=(0.5, 0.6)),
        "b": Range(loguniform=(1e-4, 1e-2)),
    }
    results = LocalCluster().run_trials(
        ToyTrial,
        {"starts": tmp_path / "starts"},
        SearchPlan(
            SearchConfig(trials=50, space=space),
            WorkerConfig(),
            name="search",
            metric="score",
            max_epochs=1,
            slots=lambda: 1,
            course=apart,
        ),
        directory=tmp_path,
        log=tmp_path / "log",
        on_result=lambda trial, metrics: None,
    )
    points = [result.hyperparameters for result in results]
    assert {point["x"] for point in points} == {1, 2, 3}
    assert all(0.5 <= point["a"] <= 0.6 and 1e-4 <= point["b"] <= 1e-2 for point in points)
    assert sum(point["b"] < 1e-3 for point in points) > 10
