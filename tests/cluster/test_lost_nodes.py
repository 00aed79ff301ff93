"""Searches whose node goes: on a real Ray of several nodes."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from test_gangs import RAY, Nodes, nodes, running
from toys import ToyTrial, ToyTrialOfRanks

from cluster.config import SearchConfig, TrialConfig
from cluster.interface import Metrics, SearchPlan

__all__ = ["nodes", "running"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS = 8


def search(nodes: Nodes, folder: Path, workers: int, disturb: Callable[[], None]) -> list[Metrics]:
    """Two trials; once the first has told of three epochs, disturb them. All that was told."""
    told: list[Metrics] = []

    def when_it_runs() -> None:
        while len(told) < 3:
            time.sleep(0.05)
        disturb()

    threading.Thread(target=when_it_runs, daemon=True).start()
    space = {"x": [2, 3], "epochs": EPOCHS, "pause_s": 0.5}
    results = nodes.connected.run_trials(
        ToyTrial if workers == 1 else ToyTrialOfRanks,
        {"starts": folder / "starts", "marker": folder / "died"},
        SearchPlan(
            SearchConfig(trials=2, searcher="grid", space=space),
            TrialConfig(workers=workers),
            name="search",
            metric="score",
            max_epochs=EPOCHS,
            slots=1,
        ),
        directory=str(folder / "search"),
        log=folder / "log",
        on_result=lambda trial, metrics: told.append(metrics),
    )
    for result in results:
        x = result.hyperparameters["x"]
        assert result.status == "finished"
        assert [epoch["sum"] for epoch in result.history] == [x * n for n in range(1, EPOCHS + 1)]
    return told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_goes_on_when_its_node_is_gone(nodes: Nodes, tmp_path: Path, workers: int) -> None:
    nodes.add(cpus=workers)

    def replace() -> None:
        nodes.cluster.remove_node(nodes.alive[0], allow_graceful=False)
        nodes.add(cpus=workers)

    told = search(nodes, tmp_path, workers, replace)
    assert len(told) <= 2 * EPOCHS + 2  # from its last epoch, not from the first


def test_a_trial_of_several_workers_leaves_a_node_that_is_drained(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add(cpus=2)
    first = {node["NodeID"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]}

    def drain() -> None:
        command = [RAY, "drain-node", "--address", nodes.cluster.address]
        command += ["--node-id", *first, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "spot", "--deadline-remaining-seconds", "300"]
        subprocess.run(command, check=True, capture_output=True)
        nodes.add(cpus=2)

    told = search(nodes, tmp_path, 2, drain)
    assert len(told) <= 2 * EPOCHS + 2
