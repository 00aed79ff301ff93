"""Trials that share a GPU, on a Ray that counts one where none is."""

from itertools import pairwise
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from toys import ToyTrialOnADevice, apart

from cluster import capacity
from cluster.config import ClusterConfig, SearchConfig, TrialConfig
from cluster.interface import SearchPlan
from cluster.ray_cluster import connect

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.usefixtures("no_token")
def test_two_trials_share_one_gpu(tmp_path: Path) -> None:
    half = TrialConfig(gpus=0.5)
    config = SearchConfig(trials=4, space={"x": [1, 2, 3], "epochs": 3, "pause_s": 0.5})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1})
    try:
        with connect(ClusterConfig(address=cluster.address)) as connected:
            slots = capacity.trials_at_once(connected.capacity(), half, 1)
            assert slots == 2
            results = connected.run_trials(
                ToyTrialOnADevice,
                {"starts": tmp_path / "starts", "epochs": tmp_path / "epochs"},
                SearchPlan(
                    config,
                    half,
                    name="search",
                    metric="score",
                    max_epochs=3,
                    slots=lambda: slots,
                    course=apart,
                ),
                directory=str(tmp_path / "search"),
                log=tmp_path / "log",
                on_result=lambda trial, metrics: None,
            )
    finally:
        cluster.shutdown()
    assert {result.status for result in results} == {"finished"}
    epochs = [line.split() for line in (tmp_path / "epochs").read_text().splitlines()]
    assert {device for _, device, _, _ in epochs} == {"0"}
    assert len({process for process, *_ in epochs}) == 2
    spans = sorted((float(began), float(ended)) for *_, began, ended in epochs)
    pairs = pairwise(spans)
    assert any(later < ended for (_, ended), (later, _) in pairs)  # at the same time
