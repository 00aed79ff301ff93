from pathlib import Path

import pytest

from trainers import checkpoint, manifest


def save(root: Path, step: int) -> Path:
    directory = checkpoint.directory_of(root, step)
    (directory / "state").mkdir(parents=True)
    (directory / "state" / "rank0.pt").write_bytes(bytes([step]) * 1000)
    checkpoint.seal(directory, step=step, state={"samples": step * 4})
    return directory


def test_newest_checkpoint_of_all_folders_is_found(tmp_path: Path) -> None:
    save(tmp_path / "a", 5)
    save(tmp_path / "b", 10)
    found = checkpoint.newest([tmp_path / "a", tmp_path / "b", tmp_path / "none"])
    assert found is not None
    assert (found.step, found.state) == (10, {"samples": 40})


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "unsealed", "no JSON"])
def test_damaged_checkpoint_is_not_used_and_the_one_before_is(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 5)
    file = save(tmp_path, 10) / "state" / "rank0.pt"
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
            (file.parent.parent / checkpoint.MANIFEST).write_text('{"step": ')
        case "unsealed":
            (file.parent.parent / checkpoint.MANIFEST).unlink()
    found = checkpoint.newest([tmp_path])
    assert found is not None
    assert found.step == 5


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest([tmp_path]) is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000015", "step-000000020"]


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
