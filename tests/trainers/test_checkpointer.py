"""One rank's checkpoints with the plain engine: saved, sealed, found, refused."""

import logging
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainers import checkpoint, optim, seals, snapshot
from trainers.checkpoint import CheckpointError, Share
from trainers.checkpointer import Checkpointer
from trainers.engine import PlainEngine, Ranks
from trainers.errors import DataError
from trainers.pretrain_config import CheckpointConfig
from trainers.snapshot import SnapshotError

FLIPS = 1000


def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module(batch["x"]).square().mean()
    return found


def engine(seed: int = 0) -> PlainEngine:
    torch.manual_seed(seed)
    module = nn.Linear(8, 4)
    optimizer = optim.adamw(module, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    return PlainEngine(module, optimizer, loss, gradient_clipping=0.0, device=torch.device("cpu"))


def step(trained: PlainEngine) -> None:
    trained.step([{"x": torch.ones(2, 8)}])


def weights(trained: PlainEngine) -> list[float]:
    return [number for weight in trained.weights().values() for number in weight.flatten().tolist()]


def checkpointer(
    root: Path,
    trained: PlainEngine | None = None,
    *earlier: Path,
    share: Share | None = None,
    **config: Any,
) -> Checkpointer:
    return Checkpointer(
        trained or engine(),
        root=root,
        earlier=earlier,
        ranks=Ranks(),
        config=CheckpointConfig(**config),
        share=share,
    )


def steps(root: Path) -> list[int]:
    return [checkpoint.read(directory).step for directory in checkpoint.sealed(root)]


def save_all(root: Path, *numbers: int, **config: Any) -> None:
    saved = checkpointer(root, **config)
    for number in numbers:
        saved.save(number, {"cursor": number})
    saved.finish()


def test_loaded_training_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    first, second = engine(), engine(seed=1)
    step(first)
    saved = checkpointer(tmp_path, first)
    saved.save(1, {"cursor": 4})
    step(first)  # at once: the copy is awaited before weights change
    step(first)
    saved.finish()
    other = checkpointer(tmp_path, second)
    found = other.newest()
    assert found is not None
    assert (found.step, found.state["cursor"], found.state["world_size"]) == (1, 4, 1)
    other.load(found)
    step(second)
    step(second)
    assert weights(second) == weights(first)
    assert 0 < saved.stall_s < 5
    assert (saved.saved_step, other.saved_step) == (1, None)


def test_newest_of_all_folders_below_a_step_is_found(tmp_path: Path) -> None:
    save_all(tmp_path / "a", 5, 20, keep=9)
    save_all(tmp_path / "b", 10)
    both = checkpointer(tmp_path / "c", None, tmp_path / "a", tmp_path / "b")
    assert [found and found.step for found in map(both.newest, (None, 20, 10, 5))] == [
        20,
        10,
        5,
        None,
    ]


@pytest.mark.parametrize("damage", ["flip", "truncate"])
@pytest.mark.parametrize("name", ["state.pt", checkpoint.MANIFEST])
def test_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, name: str
) -> None:
    save_all(tmp_path, 5, 10)
    file = checkpoint.directory_of(tmp_path, 10) / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[0] ^= 1
    else:
        content.pop()
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = checkpointer(tmp_path).newest()
    assert found is not None
    assert found.step == 5
    (line,) = [record.getMessage() for record in caplog.records]
    assert "step-000000010 is not used" in line


def test_each_of_a_thousand_flipped_bits_is_found(tmp_path: Path) -> None:
    saved = checkpointer(tmp_path)
    saved.save(5, {"cursor": 20, "history": [{"loss": 2.5}]})
    saved.finish()
    (directory,) = checkpoint.sealed(tmp_path)
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) == 3  # the engine's, the rank's part, the manifest
    generator = random.Random(0)
    for _ in range(FLIPS):
        path = generator.choice(files)
        content = path.read_bytes()
        bit = generator.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="no checkpoint is intact"):
            checkpointer(tmp_path).newest()
        path.write_bytes(content)
    assert checkpoint.damage(directory) is None


def test_manifest_of_another_step_is_damage(tmp_path: Path) -> None:
    save_all(tmp_path, 5, 10)
    older, newer = (checkpoint.directory_of(tmp_path, number) for number in (5, 10))
    (newer / checkpoint.MANIFEST).write_bytes((older / checkpoint.MANIFEST).read_bytes())
    assert "not what was written there" in (checkpoint.damage(newer) or "")


def test_where_none_is_intact_training_does_not_begin_anew(tmp_path: Path) -> None:
    save_all(tmp_path, 5, 10)
    for directory in checkpoint.sealed(tmp_path):
        (directory / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"remove .*step-000000010, .*step-000000005 to tra"):
        checkpointer(tmp_path).newest()


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpointer(tmp_path / "none").newest() is None


def test_killed_between_files_and_manifest_the_one_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path, 5)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "seal", lambda *_, **__: None)
        save_all(tmp_path, 10)
    found = checkpointer(tmp_path).newest()
    assert found is not None
    assert found.step == 5
    save_all(tmp_path, 10)
    assert steps(tmp_path) == [10, 5]


def test_best_and_last_are_kept_apart(tmp_path: Path) -> None:
    saved = checkpointer(tmp_path, keep=1)
    for number, value in [(5, 2.0), (10, 1.0), (15, 3.0), (20, 2.5)]:
        saved.save(number, {"validation_loss": value})
    saved.finish()
    assert steps(tmp_path) == [20, 10]


def test_lists_in_the_state_may_grow_after_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, history = checkpointer(tmp_path), [1]
    saved.save(5, {"history": history})
    history.append(2)
    saved.finish()
    found = checkpointer(tmp_path).newest()
    assert found is not None
    assert found.state["history"] == [1]


def test_error_of_the_writer_ends_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: Any, path: Path) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    saved = checkpointer(tmp_path)
    monkeypatch.setattr(snapshot, "write", full)
    saved.save(5, {})
    with pytest.raises(SnapshotError, match="No space left"):
        saved.save(10, {})
    assert steps(tmp_path) == []


def test_two_are_never_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal, under_way, most = checkpoint.seal, threading.Semaphore(1), []

    def alone(*args: Any, **kwargs: Any) -> None:
        most.append(under_way.acquire(blocking=False))
        seal(*args, **kwargs)
        under_way.release()

    monkeypatch.setattr(checkpoint, "seal", alone)
    save_all(tmp_path, *range(1, 20))
    assert most == [True] * 19
    assert steps(tmp_path) == [19, 18]


def test_checkpoint_of_another_engine_is_refused(tmp_path: Path) -> None:
    save_all(tmp_path, 5)
    directory = checkpoint.directory_of(tmp_path, 5)
    manifest = directory / checkpoint.MANIFEST
    content = seals.opened(manifest.read_bytes(), directory.name)
    content["state"]["engine"]["optimizer"] = "Muon"
    manifest.write_bytes(seals.sealed(content, directory.name))
    other = checkpointer(tmp_path)
    found = other.newest()
    assert found is not None
    with pytest.raises(DataError, match=r"written with .*optimizer Muon.* remove the folder"):
        other.load(found)
