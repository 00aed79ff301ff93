"""States written in the background."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import manifest
from trainers.snapshot import Facts, SnapshotError, Snapshots


def state(value: float) -> dict[str, Any]:
    weight = torch.full((100, 30), value)
    return {
        "weight": weight,
        "tied": weight,
        "view": torch.arange(1_000_000.0)[10:14],
        "nested": [{"step": torch.tensor(value)}, (torch.zeros(0), "text")],
        "list": [1],
    }


def save(snapshots: Snapshots, saved: Any, folder: Path) -> Facts:
    found: list[Facts] = []
    snapshots.add(saved, folder / "state.pt")
    snapshots.begin(folder, found.append)
    snapshots.finish()
    return found[0]


def pointers(snapshots: Snapshots) -> list[int]:
    return [buffer.data_ptr() for buffer in snapshots._buffers.values()]


def test_file_holds_the_state_and_its_facts_are_the_files(tmp_path: Path) -> None:
    facts = save(Snapshots(), state(1.0), tmp_path)
    assert facts == manifest.describe(tmp_path)
    loaded = torch.load(tmp_path / "state.pt")
    assert torch.equal(loaded["weight"], torch.ones(100, 30))
    assert loaded["weight"].data_ptr() == loaded["tied"].data_ptr()
    assert loaded["view"].tolist() == [10.0, 11.0, 12.0, 13.0]
    assert loaded["nested"][0]["step"] == 1.0
    assert loaded["nested"][1][1] == "text"
    assert facts["state.pt"]["size"] < 50_000  # not the million numbers behind the view


def test_second_save_uses_the_buffers_of_the_first(tmp_path: Path) -> None:
    snapshots = Snapshots()
    save(snapshots, state(1.0), tmp_path)
    before = pointers(snapshots)
    save(snapshots, state(2.0), tmp_path)
    assert pointers(snapshots) == before
    assert torch.load(tmp_path / "state.pt")["weight"][0, 0] == 2.0


def test_change_after_the_copy_does_not_reach_the_file(tmp_path: Path) -> None:
    snapshots, saved = Snapshots(), {"weight": torch.ones(4_000_000), "list": [1]}
    snapshots.add(saved, tmp_path / "state.pt")
    snapshots.begin(tmp_path, lambda facts: None)
    saved["list"].append(2)  # what is no tensor was copied at once
    snapshots.wait_until_copied()
    saved["weight"].fill_(7.0)
    snapshots.finish()
    loaded = torch.load(tmp_path / "state.pt")
    assert loaded["list"] == [1]
    assert loaded["weight"].max() == 1.0


def test_error_of_the_writer_is_raised_once_where_the_loop_asks(tmp_path: Path) -> None:
    snapshots = Snapshots()
    snapshots.add(state(1.0), tmp_path / "none" / "state.pt")
    snapshots.begin(tmp_path, lambda facts: None)
    snapshots.wait_until_copied()
    with pytest.raises(SnapshotError, match=r"could not be written: .*none/state\.pt"):
        snapshots.wait_until_written()
    with pytest.raises(SnapshotError):
        snapshots.finish()
    save(snapshots, state(1.0), tmp_path)


def test_second_snapshot_is_refused_while_one_is_under_way(tmp_path: Path) -> None:
    snapshots, go = Snapshots(), threading.Event()
    snapshots.add(state(1.0), tmp_path / "state.pt")
    snapshots.begin(tmp_path, lambda facts: None, lambda: bool(go.wait(10)) and None)
    with pytest.raises(AssertionError, match="under way"):
        snapshots.add(state(2.0), tmp_path / "state.pt")
    go.set()
    snapshots.finish()


def test_waiting_for_the_copy_is_counted(tmp_path: Path) -> None:
    snapshots = Snapshots()
    snapshots.add({"weight": torch.ones(20_000_000)}, tmp_path / "state.pt")
    snapshots.begin(tmp_path, lambda facts: None)
    started = time.monotonic()
    snapshots.wait_until_copied()
    assert snapshots.stall_s <= time.monotonic() - started
    snapshots.finish()
