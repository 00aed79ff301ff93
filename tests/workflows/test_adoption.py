import json
from pathlib import Path

import pytest
from own_steps import own_step

from workflows.adoption import AdoptionError, adopt
from workflows.artifacts import Artifacts
from workflows.ledger import Position
from workflows.steps import Step
from workflows.storage import Storage

PRETRAIN = Step(name="pretrain", kind="pretrain", version=1, spec=own_step("x").spec)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "sub/extra.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def test_checkpoint_is_taken_in_with_its_digests(storage: Storage, checkpoint: Path) -> None:
    artifacts = Artifacts(storage)
    record = adopt(PRETRAIN, checkpoint, artifacts, "run", force=False)
    assert artifacts.find(PRETRAIN) == record
    assert record.facts == {"adopted_from": str(checkpoint), "licence": None}
    assert record.files["model.safetensors"]["size"] == 1000
    assert record.source is None
    assert (artifacts.verified(record) / "sub" / "extra.json").is_file()
    assert (checkpoint / "model.safetensors").is_file()


def test_output_that_is_there_is_replaced_only_when_forced(
    local: Storage, checkpoint: Path
) -> None:
    artifacts = Artifacts(local)
    first = adopt(PRETRAIN, checkpoint, artifacts, "run", force=False)
    with pytest.raises(AdoptionError, match="has an output already; with --force"):
        adopt(PRETRAIN, checkpoint, artifacts, "run", force=False)
    assert artifacts.find(PRETRAIN) == first
    second = adopt(PRETRAIN, checkpoint, artifacts, "run", force=True)
    assert artifacts.find(PRETRAIN) == second
    assert second.attempt != first.attempt


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("model.safetensors", r"no \*\.safetensors there; a pretrain step's readers open it"),
        ("tokenizer.json", "no tokenizer.json there"),
    ],
)
def test_folder_that_lacks_what_readers_open_is_refused(
    local: Storage, checkpoint: Path, missing: str, told: str
) -> None:
    (checkpoint / missing).unlink()
    with pytest.raises(AdoptionError, match=told):
        adopt(PRETRAIN, checkpoint, Artifacts(local), "run", force=False)
    assert local.find("") == {}


def test_file_that_is_not_what_it_says_is_refused(local: Storage, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(AdoptionError, match=r"config\.json: not JSON"):
        adopt(PRETRAIN, checkpoint, Artifacts(local), "run", force=False)


def test_missing_folder_and_outputs_that_cannot_be_adopted_are_refused(
    local: Storage, tmp_path: Path
) -> None:
    with pytest.raises(AdoptionError, match="no such folder"):
        adopt(PRETRAIN, tmp_path / "nowhere", Artifacts(local), "run", force=False)
    promote = Step(name="t.promote", kind="promote", version=1, spec=PRETRAIN.spec)
    with pytest.raises(AdoptionError, match="cannot come from outside"):
        adopt(promote, tmp_path, Artifacts(local), "run", force=False)


def test_step_under_way_is_left_alone(local: Storage, checkpoint: Path) -> None:
    artifacts = Artifacts(local)
    artifacts.begin(PRETRAIN, Position(), "nightly", lease_s=60)
    with pytest.raises(AdoptionError, match="nightly is computing pretrain"):
        adopt(PRETRAIN, checkpoint, artifacts, "run", force=False)
