"""Decay branches of a pretraining with a constant rate."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from worlds import KilledError, Reports, moved, prepare, run

from trainers.branches import published
from trainers.pretrain import PretrainWork

STABLE = {"name": "wsd", "decay": 1 / 6}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("branches"))


@pytest.fixture(scope="module")
def branched(work: PretrainWork, tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    """A training that branches off after half of its 20 steps, for 2 steps."""
    folder = tmp_path_factory.mktemp("branched")
    training = moved(work, folder, schedule={**STABLE, "branches": [0.5]})
    run(training, Reports())
    return training


def weights(folder: Path) -> dict[str, bytes]:
    return {name: w.tobytes() for name, w in load_file(folder / "model.safetensors").items()}


def facts(work: PretrainWork) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work.output / "pretraining.json").read_text())
    return found


def test_branch_leaves_the_trunk_as_it_was(
    work: PretrainWork, branched: PretrainWork, tmp_path: Path
) -> None:
    plain = moved(work, tmp_path, schedule=STABLE)
    run(plain, Reports())
    assert weights(branched.output) == weights(plain.output)
    assert facts(branched)["samples_digest"] == facts(plain)["samples_digest"]


def test_branch_is_the_model_of_a_training_that_ends_there(
    work: PretrainWork, branched: PretrainWork, tmp_path: Path
) -> None:
    short = moved(work, tmp_path, schedule=STABLE, tokens=12 * 8 * 16)
    run(short, Reports())
    (branch,) = facts(branched)["branches"]
    assert (branch["start_step"], branch["stop_step"]) == (10, 12)
    assert weights(branched.output / branch["folder"]) == weights(short.output)
    assert branch["validation_loss"] == facts(short)["history"][-1]["validation_loss"]


def test_branch_is_published_when_its_model_is_whole_and_not_before(
    branched: PretrainWork, tmp_path: Path
) -> None:
    (branch,) = facts(branched)["branches"]
    seen = branched.checkpoints / branch["folder"]
    assert published(seen) == published(branched.output / branch["folder"]) == branch
    copied = shutil.copytree(seen, tmp_path / "copy")
    with (copied / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert published(copied) is None
    assert published(tmp_path) is None


@pytest.mark.parametrize("kill_after", [10, 16])
def test_killed_training_has_its_branches_all_the_same(
    work: PretrainWork, branched: PretrainWork, tmp_path: Path, kill_after: int
) -> None:
    schedule = {**STABLE, "branches": [0.5]}
    cut = moved(work, tmp_path / "cut", schedule=schedule)
    with pytest.raises(KilledError):
        run(cut, Reports(kill_after=kill_after))
    rest = moved(work, tmp_path / "rest", schedule=schedule)
    run(replace(rest, earlier_checkpoints=(cut.checkpoints,)), Reports())
    (branch,) = facts(rest)["branches"]
    for folder in (".", branch["folder"]):
        assert weights(rest.output / folder) == weights(branched.output / folder)
