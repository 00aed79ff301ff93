"""`pretune doctor` on a real Ray of two nodes, one of which does not see all that it should."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_pipeline, write_pipeline
from nodes import ADDRESS, SETTINGS, Nodes, nodes_alive
from processes import pretune, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CHECKS = {
    *("versions", "machines", "GPUs", "/dev/shm", "disk", "clocks", "ports", "token"),
    *("dashboard", "storage", "MLflow", "all-reduce"),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes) -> Path:
    """With two nodes; the second sees another folder `hidden` where root can arrange that."""
    folder = tmp_path_factory.mktemp("doctor")
    for name in ("shared", "hidden"):
        (folder / name).mkdir()
    hide = f'mount -t tmpfs tmpfs "{folder / "hidden"}" && exec "$@"'
    through = ["unshare", "--mount", "sh", "-c", hide, "sh"] if os.geteuid() == 0 else []
    nodes.add(cpus=2)
    nodes.add(cpus=2, through=through)
    wait_for(lambda: nodes_alive() == 2, timeout_s=60)
    return folder


def test_a_healthy_cluster_is_measured_in_under_a_minute(folder: Path) -> None:
    command = ("doctor", "--address", ADDRESS, "--storage", folder / "shared", "--json")
    answer = pretune(*command, folder=folder, **SETTINGS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    told = json.loads(answer.stdout)
    assert {finding["check"] for finding in told["findings"]} == CHECKS
    levels = {finding["check"]: finding["level"] for finding in told["findings"]}
    assert levels["ports"] == levels["clocks"] == levels["versions"] == "ok"
    assert levels["token"] == levels["dashboard"] == "warning"
    assert len(told["nodes"]) == len(told["storage"]) == 2
    assert all(speed["write_bytes_per_s"] > 0 for speed in told["storage"].values())
    assert sorted(told["all_reduce"]["places"]) == sorted(told["nodes"])
    assert told["all_reduce"]["bus_bytes_per_s"] > 0
    assert told["seconds"] < 60
    assert not [path for path in (folder / "shared").rglob("*") if path.is_file()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hide a folder from a process")
def test_what_is_wrong_is_told_with_its_remedy(folder: Path) -> None:
    data = tiny_pipeline(folder)
    data["storage"] = str(folder / "hidden")
    data["cluster"] |= {"address": ADDRESS, "trials": {"cpus": 3}}
    pipeline = write_pipeline(folder, data)
    settings = {"MLFLOW_TRACKING_URI": "http://me:canary@127.0.0.1:9/?key=canary", "COLUMNS": "80"}
    answer = pretune("doctor", pipeline, folder=folder, **SETTINGS, **settings)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    told = " ".join(answer.stdout.split())
    assert "is not seen: " in told
    assert "-> set storage to a folder that all nodes share" in told
    assert "error capacity cluster.trials asks for 3 CPUs" in told
    assert "MLFLOW_TRACKING_URI is not set there, and http://127.0.0.1:9/ here" in told
    assert "canary" not in answer.stdout + answer.stderr
    assert "errors: 2" in told
    assert max(len(line) for line in answer.stdout.splitlines()) <= 80


def test_an_address_where_no_ray_answers_is_told_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        command = ("doctor", "--address", f"127.0.0.1:{port}", "--json")
        answer = pretune(*command, folder=tmp_path, **SETTINGS)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    told = json.loads(answer.stdout)
    (finding,) = told["findings"]
    assert "no Ray answers within 10 s" in finding["what"]
    assert told["seconds"] < 20


def test_a_node_that_hangs_is_told_apart_in_under_a_minute(folder: Path, nodes: Nodes) -> None:
    """Last of this module: Ray may take the node for dead."""
    raylet = nodes.raylet(1)
    os.kill(raylet, signal.SIGSTOP)
    try:
        command = ("doctor", "--address", ADDRESS, "--storage", folder / "shared", "--json")
        answer = pretune(*command, folder=folder, **SETTINGS)
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    told = json.loads(answer.stdout)
    assert told["seconds"] < 60
    assert len(told["nodes"]) == 1
    errors = [finding for finding in told["findings"] if finding["level"] == "error"]
    assert {finding["check"] for finding in errors} == {"nodes", "storage", "all-reduce"}
    (silent,) = (finding for finding in errors if finding["check"] == "nodes")
    assert silent["node"] not in told["nodes"]
    assert "no answer within 15.0 s" in silent["what"]
