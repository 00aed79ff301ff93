"""Checkpoints as folders: sealed, found, verified, kept or removed."""

from pathlib import Path

import pytest

from trainers import checkpoint, manifest
from trainers.checkpoint import Kept
from trainers.pretrain_config import CheckpointConfig


def save(root: Path, step: int, **state: float) -> Path:
    directory = checkpoint.directory_of(root, step)
    (directory / "state").mkdir(parents=True)
    (directory / "state" / "rank0.pt").write_bytes(bytes([step]) * 1000)
    files = manifest.describe(directory)
    checkpoint.seal(directory, step=step, state={"samples": step * 4, **state}, files=files)
    return directory


def test_sealed_folder_is_a_checkpoint_with_its_state(tmp_path: Path) -> None:
    directory = save(tmp_path, 10)
    assert checkpoint.sealed(tmp_path) == [directory]
    assert checkpoint.damage(directory) is None
    found = checkpoint.read(directory)
    assert (found.step, found.state) == (10, {"samples": 40})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("flip", "other bytes"),
        ("truncate", "999 bytes instead of 1000"),
        ("remove", "missing"),
        ("no JSON", "manifest is damaged"),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: str, told: str) -> None:
    directory = save(tmp_path, 10)
    file = directory / "state" / "rank0.pt"
    match damage:
        case "flip":
            content = bytearray(file.read_bytes())
            content[500] ^= 1
            file.write_bytes(content)
        case "truncate":
            file.write_bytes(file.read_bytes()[:-1])
        case "remove":
            file.unlink()
        case "no JSON":
            (directory / checkpoint.MANIFEST).write_text('{"step": ')
    assert told in (checkpoint.damage(directory) or "")


def test_parts_are_complete_when_all_ranks_have_written(tmp_path: Path) -> None:
    checkpoint.write_part(tmp_path, 1, {"b": {"size": 2}})
    assert checkpoint.parts(tmp_path, 2) is None
    checkpoint.write_part(tmp_path, 0, {"a": {"size": 1}})
    assert checkpoint.parts(tmp_path, 2) == {"a": {"size": 1}, "b": {"size": 2}}


@pytest.mark.parametrize(
    ("losses", "keep", "permanent", "stay"),
    [
        ([None, None, None, None], 2, None, {15, 20}),
        ([None, None, None, None], 9, None, {5, 10, 15, 20}),
        ([3.0, 1.0, 2.0, 2.5], 1, None, {10, 20}),
        ([3.0, 2.5, 2.0, 1.0], 1, None, {20}),
        ([3.0, 1.0, 1.0, 2.5], 1, None, {10, 20}),
        ([None, None, None, None], 1, 10, {10, 20}),
        ([1.0, None, None, None], 1, 15, {5, 15, 20}),
    ],
)
def test_the_newest_the_best_and_the_permanent_ones_stay(
    losses: list[float | None], keep: int, permanent: int | None, stay: set[int]
) -> None:
    found = [Kept(step, loss) for step, loss in zip((5, 10, 15, 20), losses, strict=True)]
    config = CheckpointConfig(keep=keep, permanent_every_steps=permanent)
    assert checkpoint.retained(found, config) == stay


def test_pruning_removes_the_others_and_what_was_never_sealed(tmp_path: Path) -> None:
    for step, loss in [(5, 3.0), (10, 1.0), (15, 2.0), (20, 2.5), (25, 2.0)]:
        save(tmp_path, step, validation_loss=loss)
    checkpoint.directory_of(tmp_path, 18).mkdir()  # a killed writer's
    config = CheckpointConfig(keep=1)
    gone = checkpoint.prune(tmp_path, config, newest_step=20)  # 25 was left by going back
    assert sorted(path.name[-2:] for path in gone) == ["05", "15", "18", "25"]
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["10", "20"]


def test_description_names_every_file_with_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("content")
    files = manifest.describe(tmp_path)
    assert files == {
        "a/b.txt": {
            "size": 7,
            "sha256": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73",
        }
    }
    assert manifest.first_damage(tmp_path, files) is None
