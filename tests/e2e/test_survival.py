"""What the tiny pipeline survives: a driver killed ten times, an object store, blind nodes."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_pipeline, write_pipeline
from processes import PRETUNE, pretune, wait_for

from workflows.history import head, run_ids
from workflows.journal import read
from workflows.ledger import Ledger, Record
from workflows.models import ModelStore
from workflows.steps import StepRef
from workflows.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

KILLS = 10
SEED = 20261123


def reproducible_pipeline(folder: Path) -> dict[str, Any]:
    """Without ASHA: which trials it stops depends on which report first."""
    data = tiny_pipeline(folder)
    for task in data["tasks"].values():
        task["search"] |= {"searcher": "random", "scheduler": "none"}
    return data


def committed(where: Storage, step: StepRef) -> list[Record]:
    ledger = Ledger(where)
    found = [ledger.record(step, number) for number in range(1, 40)]
    return [record for record in found if record is not None]


def steps_of(where: Storage) -> list[StepRef]:
    plan = head(where, run_ids(where)[-1])
    assert plan is not None
    return [StepRef(name, *identity) for name, identity in plan.steps.items()]


def model_digests(where: Storage) -> dict[str, Any]:
    store = ModelStore(where)
    return {
        name: store.facts(champion)["files"]
        for name in store.names()
        if (champion := store.champion(name)) is not None
    }


def test_driver_killed_at_ten_random_moments_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
        write_pipeline(folder, reproducible_pipeline(folder))
    answer = pretune("run", "pipeline.yaml", folder=undisturbed)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    moments = random.Random(SEED)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [PRETUNE, "run", "pipeline.yaml"],
            cwd=disturbed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(5.0, 30.0))
        process.kill()
        process.wait()
    answer = pretune("run", "pipeline.yaml", "--json", folder=disturbed)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(json.loads(answer.stdout)["states"].values()) <= {"done", "reused"}

    where = Storage.at(disturbed / "storage")
    steps = steps_of(where)
    assert steps == steps_of(Storage.at(undisturbed / "storage"))
    assert model_digests(where) == model_digests(Storage.at(undisturbed / "storage"))
    assert len(model_digests(where)) == 2
    assert_each_step_was_committed_once_and_not_run_after(where, steps)
    # The tuned models' versions and promotions are not doubled either.
    for name in ModelStore(where).names():
        assert len(ModelStore(where).versions(name)) == 1
        assert len(ModelStore(where).log(name)) == 1


def assert_each_step_was_committed_once_and_not_run_after(
    where: Storage, steps: list[StepRef]
) -> None:
    runs = run_ids(where)
    assert len(runs) >= 2
    for step in steps:
        (record,) = committed(where, step)
        started = [
            (run, event["time"])
            for run in runs
            for event in read(where, f"runs/{run}/events")
            if event.get("step") == step.name and event.get("state") == "running"
        ]
        done = [
            run
            for run in runs
            for event in read(where, f"runs/{run}/events")
            if event.get("step") == step.name and event.get("state") == "done"
        ]
        assert started[-1][0] == record.run, f"{step.name} ran after it was committed"
        # A driver killed between a commit and its event leaves none.
        assert done in ([], [record.run])


def test_whole_pipeline_runs_on_an_object_store(tmp_path: Path, remote: Storage) -> None:
    data = tiny_pipeline(tmp_path)
    data["storage"] = remote.root
    pipeline = write_pipeline(tmp_path, data)
    answer = pretune("run", pipeline, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    summary = json.loads(answer.stdout)
    assert set(summary["states"].values()) == {"done"}
    assert summary["report"].startswith("s3://")
    assert "tf-idf" in remote.read(summary["report"].removeprefix(f"{remote.root}/")).decode()
    (run,) = run_ids(remote)
    assert "pretrain.log" in remote.names(f"runs/{run}/logs")
    # Nothing but the storage is needed to go on, to look, and to use a model.
    elsewhere = {"PRETUNE_CACHE": str(tmp_path / "another machine")}
    again = pretune("run", pipeline, "--json", folder=tmp_path, **elsewhere)
    assert set(json.loads(again.stdout)["states"].values()) == {"reused"}
    status = pretune("status", "--storage", remote.root, "--json", folder=tmp_path, **elsewhere)
    steps = json.loads(status.stdout)["steps"]
    assert {step["state"] for step in steps.values()} == {"done"}
    answer = pretune(
        *("predict", "tiny.tone", "a wonderful day", "--json", "--storage", remote.root),
        folder=tmp_path,
        **elsewhere,
    )
    assert [row["label"] for row in json.loads(answer.stdout)] == ["good"]
    # Computed anew from inputs that only the storage has.
    forced = pretune(
        "run", pipeline, "--force", "tone.tune", "--json", folder=tmp_path, **elsewhere
    )
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert json.loads(forced.stdout)["states"]["tone.tune"] == "done"


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Ray of two nodes; the second sees an empty folder where the first sees the storage."""
    ray = str(Path(sys.executable).with_name("ray"))
    storage = tmp_path / "storage"
    storage.mkdir()
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_AUTO_CONNECT": "0"}
    common = ["--num-cpus=2", "--disable-usage-stats", "--block"]
    folder = f"/tmp/two-nodes-{os.getpid()}"
    head_command = [
        *(ray, "start", "--head", "--port=16379", "--include-dashboard=false"),
        *("--node-ip-address=127.0.0.1", f"--temp-dir={folder}", *common),
    ]
    joined = "--address=127.0.0.1:16379 --node-ip-address=127.0.0.1"
    blind_command = [
        *("unshare", "--mount", "sh", "-c"),
        f"mount -t tmpfs tmpfs '{storage}' && exec {ray} start {joined} {' '.join(common)}",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    started = [subprocess.Popen(head_command, **quiet)]
    time.sleep(8.0)
    started.append(subprocess.Popen(blind_command, **quiet))
    yield "127.0.0.1:16379", storage
    for process in reversed(started):
        process.terminate()
        process.wait(timeout=60)
    subprocess.run(["rm", "-rf", folder], check=True)


def test_storage_that_a_node_cannot_see_is_refused_before_anything_runs(
    tmp_path: Path, two_nodes: tuple[str, Path]
) -> None:
    address, storage = two_nodes
    data = tiny_pipeline(tmp_path)
    data["cluster"]["address"] = address
    data["storage"] = str(storage)
    pipeline = write_pipeline(tmp_path, data)
    answers: list[subprocess.CompletedProcess[str]] = []

    def is_refused() -> bool:
        """Once the second node has joined."""
        answers.append(
            pretune("run", pipeline, "--only", "report", folder=tmp_path, RAY_AUTH_MODE="disabled")
        )
        return answers[-1].returncode == 2

    wait_for(is_refused, timeout_s=120)
    told = answers[-1].stderr
    assert "is not seen by 1 of 2 nodes" in told
    assert "set storage to a folder that all nodes share" in told
    assert not list(storage.glob("probes/*"))
