"""Checkpoints of two ranks go on with one, and back; killed ranks lose no bit."""

import json
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_ranks
from rank_processes import Rank
from test_ranks import run_ranks, weights
from worlds import moved, prepare

from trainers.pretrain import PretrainWork

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("elastic"))


def facts(work: PretrainWork) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work.output / "pretraining.json").read_text())
    return found


def goes_on(work: PretrainWork, *earlier: PretrainWork) -> PretrainWork:
    return replace(work, earlier_checkpoints=tuple(one.checkpoints for one in earlier))


@pytest.mark.parametrize(
    "stage",
    [0, pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak), 3],
)
def test_two_ranks_then_one_then_two_lose_as_two_throughout(
    work: PretrainWork, tmp_path: Path, stage: int
) -> None:
    # Two groups of parameters, of which one decays.
    settings = {"zero": {"stage": stage}, "weight_decay": 0.5}
    whole, first, second, third = (
        moved(work, tmp_path / name, **settings) for name in ("whole", "2", "1", "2-again")
    )
    expected = run_ranks(whole, tmp_path)
    run_ranks(first, tmp_path, kill_after=7)
    run_ranks(goes_on(second, first), tmp_path, kill_after=12, number=1)
    resumed = run_ranks(goes_on(third, first, second), tmp_path)
    assert min(map(int, resumed)) == 11
    assert resumed == pytest.approx({step: expected[step] for step in resumed}, rel=1e-5)
    assert facts(third)["samples_digest"] == facts(whole)["samples_digest"]
    assert not list(third.checkpoints.glob("universal*"))


def kill_after(process: Rank, root: Path, *, files: int, delay_s: float) -> None:
    """SIGKILL a rank once so many files of checkpoints were seen, perhaps half written."""
    while process.poll() is None and len(list(root.rglob("*.pt"))) < files:
        time.sleep(0.001)
    time.sleep(delay_s)
    process.kill()


@pytest.mark.parametrize("files", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_rank_killed_while_a_checkpoint_is_written_goes_on_to_the_same_weights(
    work: PretrainWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    settings = {"zero": {"stage": 1}, "checkpoint": {"every_steps": 2}}
    whole, cut, rest = (moved(work, tmp_path / name, **settings) for name in ("a", "b", "c"))
    run_ranks(whole, tmp_path)
    delay_s = random.Random(files).uniform(0.0, 0.02)

    def start(*given: Any) -> Rank:
        process = Rank(*given)
        arguments = {"files": files, "delay_s": delay_s}
        killer = threading.Thread(
            target=kill_after, args=(process, cut.checkpoints), kwargs=arguments, daemon=True
        )
        killer.start()
        return process

    with monkeypatch.context() as patched:
        patched.setattr(test_ranks, "Rank", start)
        run_ranks(cut, tmp_path, kill_after=20)
    run_ranks(goes_on(rest, cut), tmp_path)
    assert weights(rest) == weights(whole)


def test_muon_of_another_number_of_ranks_is_refused(work: PretrainWork, tmp_path: Path) -> None:
    settings = {"zero": {"stage": 1}, "optimizer": "muon"}
    first, second = (moved(work, tmp_path / name, **settings) for name in ("a", "b"))
    run_ranks(first, tmp_path, kill_after=7)
    with pytest.raises(AssertionError, match=r"do not carry Muon's momentum; set cluster"):
        run_ranks(goes_on(second, first), tmp_path, number=1)
