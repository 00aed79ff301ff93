"""What the tiny pipeline survives: killed drivers, an object store, nodes that see too little."""

import json
import os
import random
import re
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_pipeline, write_pipeline
from nodes import ADDRESS, SETTINGS, Nodes, nodes_alive
from processes import PRETUNE, pretune, wait_for

from workflows.history import head, run_ids
from workflows.journal import read
from workflows.ledger import Ledger, Record
from workflows.models import ModelStore
from workflows.steps import StepRef
from workflows.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEED = 20261123


def reproducible_pipeline(folder: Path) -> dict[str, Any]:
    """One task, without ASHA: which trials it stops depends on which report first."""
    data = tiny_pipeline(folder)
    del data["tasks"]["places"]
    data["tasks"]["tone"]["search"] |= {"searcher": "random", "scheduler": "none"}
    return data


@cache
def in_peace(beside: Path) -> Storage:
    """The storage of a run in which nothing happened, made once for all that compare with it."""
    folder = beside / "undisturbed"
    folder.mkdir()
    write_pipeline(folder, reproducible_pipeline(folder))
    answer = pretune("run", "pipeline.yaml", folder=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return Storage.at(folder / "storage")


def committed(where: Storage, step: StepRef) -> list[Record]:
    ledger = Ledger(where)
    found = [ledger.record(step, number) for number in range(1, 40)]
    return [record for record in found if record is not None]


def steps_of(where: Storage) -> list[StepRef]:
    plan = head(where, run_ids(where)[-1])
    assert plan is not None
    return [StepRef(name, *identity) for name, identity in plan.steps.items()]


def model_digests(where: Storage) -> dict[str, Any]:
    """Of the newest versions' files, but for those that tell which run made them and when."""
    of_runs = {"README.md", "lineage.json", "pipeline.yaml", "MLmodel", "MANIFEST.json"}
    store = ModelStore(where)
    return {
        name: {file: of for file, of in store.facts(newest)["files"].items() if file not in of_runs}
        for name in store.names()
        for newest in store.versions(name)[-1:]
    }


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_driver_killed_at_random_moments_ends_as_if_nothing_had_been(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kills: int
) -> None:
    write_pipeline(tmp_path, reproducible_pipeline(tmp_path))

    moments = random.Random(SEED)
    for _ in range(kills):
        process = subprocess.Popen(
            [PRETUNE, "run", "pipeline.yaml"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(5.0, 30.0))
        process.kill()
        process.wait()
    answer = pretune("run", "pipeline.yaml", "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(json.loads(answer.stdout)["states"].values()) <= {"done", "reused"}

    where, undisturbed = Storage.at(tmp_path / "storage"), in_peace(tmp_path_factory.getbasetemp())
    steps = steps_of(where)
    assert steps == steps_of(undisturbed)
    assert model_digests(where) == model_digests(undisturbed)
    assert len(model_digests(where)) == 2
    assert_each_step_was_committed_once_and_not_run_after(where, steps)
    # The tuned models' versions and promotions are not doubled either.
    for name in ModelStore(where).names():
        assert len(ModelStore(where).versions(name)) == 1
        assert len(ModelStore(where).log(name)) == (0 if name == "tiny.base" else 1)
    # No litter is left, and nothing that counts was taken for litter.
    assert pretune("gc", "--storage", "storage", "--delete", folder=tmp_path).returncode == 0
    attempts = {path.name for path in tmp_path.glob("storage/artifacts/*/*/*")}
    assert attempts == {committed(where, step)[0].attempt for step in steps}
    again = pretune("run", "pipeline.yaml", "--json", folder=tmp_path)
    assert set(json.loads(again.stdout)["states"].values()) == {"reused"}


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
    lines = (tmp_path / "corpus.txt").read_text(encoding="utf-8").splitlines()
    remote.write("corpus/half.txt", "\n".join(lines[200:]).encode())
    (tmp_path / "corpus.txt").write_text("\n".join(lines[:200]), encoding="utf-8")
    data["corpus"]["sources"].append({"path": f"{remote.root}/corpus/*.txt", "weight": 0.5})
    data["pretrain"] |= {"packing": "best_fit", "shuffle_shards": 1}
    del data["tasks"]["places"]
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
        *("predict", "tiny.tone", "--text", "a wonderful day", "--json", "--storage", remote.root),
        folder=tmp_path,
        **elsewhere,
    )
    assert [row["prediction"] for row in json.loads(answer.stdout)] == ["good"]
    # Computed anew from inputs that only the storage has.
    forced = pretune(
        "run", pipeline, "--force", "tone.tune", "--json", folder=tmp_path, **elsewhere
    )
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert json.loads(forced.stdout)["states"]["tone.tune"] == "done"


def refused_or_run(
    pipeline: Path, folder: Path, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    return pretune("run", pipeline, *arguments, folder=folder, **settings, **SETTINGS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hide a folder from a process")
def test_storage_that_a_node_cannot_see_is_refused_before_anything_runs(tmp_path: Path) -> None:
    data, storage = tiny_pipeline(tmp_path), tmp_path / "storage"
    storage.mkdir()
    data["cluster"]["address"] = ADDRESS
    pipeline = write_pipeline(tmp_path, data)
    hidden = f'mount -t tmpfs tmpfs "{storage}" && exec "$@"'
    with Nodes() as nodes:
        nodes.add(cpus=2)
        nodes.add(cpus=2, through=["unshare", "--mount", "sh", "-c", hidden, "sh"])
        wait_for(lambda: nodes_alive() == 2, timeout_s=60)
        answer = refused_or_run(pipeline, tmp_path)
    assert answer.returncode == 2
    assert "is not seen by 1 of 2 nodes" in answer.stderr
    assert "set storage to a folder that all nodes share" in answer.stderr
    assert not [path for path in storage.rglob("*") if path.is_file()]


def test_nodes_that_share_nothing_but_an_object_store_train_together(
    tmp_path: Path, remote: Storage
) -> None:
    """One rank on each node; checkpoints and outputs meet in the store, and a stop is resumed."""
    data = tiny_pipeline(tmp_path)
    data["storage"] = remote.root
    data["cluster"]["address"] = ADDRESS
    data["pretrain"]["tokens"] = 300 * 256
    data["pretrain"]["checkpoint"] = {"every_steps": 20}
    data["corpus"]["shard_bytes"] = 8 * 1024
    del data["tasks"]["places"]
    pipeline = write_pipeline(tmp_path, data)

    def begun() -> list[str]:
        return [
            name for name in remote.find("artifacts/pretrain") if name.endswith("manifest.json")
        ]

    with Nodes() as nodes:
        for name in ("first", "second"):
            nodes.add(cpus=1, settings={"PRETUNE_CACHE": str(tmp_path / name)})
        wait_for(lambda: nodes_alive() == 2, timeout_s=60)
        process = subprocess.Popen(
            [PRETUNE, "run", str(pipeline)],
            env=os.environ | SETTINGS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: len(begun()) >= 2)
        assert pretune("stop", "--storage", remote.root, folder=tmp_path).returncode == 0
        assert process.wait(timeout=120) == 4
        answer = refused_or_run(pipeline, tmp_path, "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    states = json.loads(answer.stdout)["states"]
    assert set(states.values()) <= {"done", "reused"}
    assert states["pretrain"] == "done"
    run = run_ids(remote)[-1]
    steps = [
        event["optimizer_step"]
        for event in read(remote, f"runs/{run}/events")
        if event["event"] == "progress"
    ]
    assert steps[0] > 40
    (pretrain,) = (step for step in steps_of(remote) if step.name == "pretrain")
    (record,) = committed(remote, pretrain)
    assert (record.facts["optimizer_step"], record.facts["samples"]) == (300, 1200)
    told = pretune("logs", run, "pretrain", "--storage", remote.root, folder=tmp_path).stderr
    logs = re.findall(r"==> (?:.*/)?(\S+)", told)
    assert {"pretrain.log", "pretrain.rank0.log", "pretrain.rank1.log"} <= set(logs)
    # Both nodes worked: each has fetched what it read.
    assert all(any((tmp_path / name / "fetched").iterdir()) for name in ("first", "second"))
    (record,) = [
        record
        for step in steps_of(remote)
        if step.name == "tokens"
        for record in committed(remote, step)
    ]
    assert len([name for name in record.files if name.endswith(".bin")]) > 4
    assert list(ModelStore(remote).names()) == ["tiny.base", "tiny.tone"]
