"""The step that computes a base's features, with a cluster in this process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import save_base, write_classification, write_pipeline
from own_steps import context

from cluster.local import LocalCluster
from trainers import features
from workflows import outside, planning, runner
from workflows.artifacts import Artifacts
from workflows.config import load_config
from workflows.journal import Journal, read
from workflows.pipeline import build_steps
from workflows.planning import Selection, State
from workflows.steps import Step
from workflows.storage import Storage


@pytest.fixture
def steps(tmp_path: Path) -> dict[str, Step]:
    """Of a pipeline whose search tries heads."""
    save_base(tmp_path / "base")
    write_classification(tmp_path / "tone.csv", 60)
    data = {"path": "tone.csv", "split": {"test": 0.25, "validation": 0.25}}
    search = {"trials": 1, "space": {"method": "head", "learning_rate": 0.01, "epochs": 1}}
    task = {"type": "classification", "data": data, "metric": "accuracy", "max_length": 64}
    pipeline = {
        "name": "heads",
        "base": {"from": "base"},
        "tasks": {"tone": task | {"search": search}},
    }
    config = load_config(write_pipeline(tmp_path, pipeline))
    return {step.name: step for step in build_steps(config, outside.inspect(config, tmp_path))}


def compute(steps: dict[str, Step], where: Storage) -> tuple[Any, Path]:
    """The facts of the step, and what it wrote."""
    step, folder = steps["tone.features"], Path(where.root).parent
    of_run = replace(context(where, LocalCluster()), base=folder)
    needed = frozenset({"base", "tone.data", step.name})
    plan = planning.plan(list(steps.values()), Artifacts(where).ledger, Selection(only=needed))
    paths = of_run.paths
    journal = Journal(paths.storage, paths.events, "run")
    result = runner.run(list(steps.values()), plan, of_run, journal)
    assert result.states[step.name] == State.DONE, result.failures
    artifacts = Artifacts(where)
    record = artifacts.find(step)
    assert record is not None
    return record.facts, artifacts.verified(record)


def test_features_of_all_rows_are_kept(steps: dict[str, Step], local: Storage) -> None:
    facts, output = compute(steps, local)
    assert facts["pooling"] == "last"
    opened = features.opened(output.joinpath)
    assert set(opened) == {"train", "validation"}
    assert json.loads((output / features.INDEX).read_text())["pooling"] == "last"


def test_heads_do_without_features_that_cannot_be_computed(
    steps: dict[str, Step], local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(work: features.FeatureWork) -> None:
        work.outputs[0].write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(features, "compute", fill_up)
    facts, output = compute(steps, local)
    assert facts == {"pooling": "none", "because": "OSError: No space left on device"}
    assert [path.name for path in output.iterdir()] == [features.INDEX]
    assert features.opened(output.joinpath) == {}
    told = [event["text"] for event in read(local, "runs/run/events") if event["event"] == "note"]
    assert any("heads are trained above the whole base" in text for text in told)
