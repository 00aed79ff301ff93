"""Pretraining with DeepSpeed on two ranks."""

import json
import math
import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rank_processes import HERE, Rank, fresh
from safetensors.numpy import load_file
from worlds import Reports, moved, prepare, run

from trainers.config import ModelConfig
from trainers.pretrain import PretrainWork

pytestmark = pytest.mark.slow

KILLED = 9


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("ranks"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start_ranks(
    script: str, arguments: Sequence[Path], folder: Path, number: int, **environment: str
) -> tuple[list[Any], list[Path]]:
    """Ranks that run a script of this folder, and their logs; in an environment of their own they
    import everything in it.
    """
    start = fresh if environment else Rank
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [HERE.parents[1], HERE, HERE.parent])),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **environment,
    }
    logs = [folder / f"rank{rank}.log" for rank in range(number)]
    ranks = [
        start(script, arguments, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log)
        for rank, log in enumerate(logs)
    ]
    return ranks, logs


def run_ranks(
    work: PretrainWork,
    folder: Path,
    *,
    kill_after: int | None = None,
    micro_batch_size: int | None = None,
    number: int = 2,
    poisoned_rank: int | None = None,
    poisoned_steps: range = range(0),
    poison: float = math.nan,
    **environment: str,
) -> dict[str, float]:
    """Train on two ranks, or another number; losses by step. A killed training has none."""
    request, answer = folder / "request.pkl", folder / "losses.json"
    settings = {
        "work": work,
        "kill_after": kill_after,
        "micro_batch_size": micro_batch_size,
        "poisoned_rank": poisoned_rank,
        "poisoned_steps": poisoned_steps,
        "poison": poison,
    }
    request.write_bytes(pickle.dumps(settings))
    ranks, logs = start_ranks("worlds.py", [request, answer], folder, number, **environment)
    for process in ranks:
        process.wait(timeout=240)
        if kill_after is not None:
            for other in ranks:  # the survivor of a dead gang waits for it in a collective
                other.kill()
    outputs = [log.read_text(errors="replace")[-5000:] for log in logs]
    if kill_after is not None:
        assert {KILLED, -KILLED} & {process.returncode for process in ranks}, outputs
        return {}
    assert [process.returncode for process in ranks] == [0] * number, "\n".join(outputs)
    losses: dict[str, float] = json.loads(answer.read_text())
    return losses


def weights(work: PretrainWork) -> dict[str, bytes]:
    path = work.output / "model.safetensors"
    return {name: weight.tobytes() for name, weight in load_file(path).items()}


@pytest.fixture(scope="module")
def alone(work: PretrainWork, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Losses of the same training in one process without DeepSpeed."""
    folder = tmp_path_factory.mktemp("alone")
    return {str(step): loss for step, loss in run(moved(work, folder), Reports()).losses.items()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_gives_the_losses_of_one_process(
    work: PretrainWork, alone: dict[str, float], tmp_path: Path, stage: int
) -> None:
    sharded = moved(work, tmp_path, zero={"stage": stage})
    assert run_ranks(sharded, tmp_path) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("stage", [1, 3])
def test_packed_documents_on_two_ranks_give_the_losses_of_one_process(
    tmp_path: Path, stage: int
) -> None:
    work = prepare(tmp_path / "world", "best_fit")
    settings = {"packing": "best_fit", "zero": {"stage": stage}}
    expected = run(moved(work, tmp_path / "alone", **settings), Reports()).losses
    sharded = moved(work, tmp_path / "ranks", **settings)
    found = run_ranks(sharded, tmp_path, micro_batch_size=1)
    # Sequences predict different numbers of tokens: a mean per micro-batch would differ by 1e-2.
    assert {int(step): loss for step, loss in found.items()} == pytest.approx(expected, abs=1e-4)


def test_masks_on_two_ranks_are_those_of_one_process(work: PretrainWork, tmp_path: Path) -> None:
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    bert = ModelConfig(objective="masked", architecture="bert", config=settings)
    work = replace(work, model=bert)
    expected = run(moved(work, tmp_path / "alone"), Reports()).losses
    found = run_ranks(moved(work, tmp_path / "ranks", zero={"stage": 2}), tmp_path)
    assert {int(step): loss for step, loss in found.items()} == pytest.approx(expected, abs=1e-4)


def test_muon_under_zero_gives_the_losses_of_one_process(
    work: PretrainWork, tmp_path: Path
) -> None:
    expected = run(moved(work, tmp_path / "alone", optimizer="muon"), Reports()).losses
    sharded = moved(work, tmp_path / "ranks", optimizer="muon", zero={"stage": 1})
    found = run_ranks(sharded, tmp_path, micro_batch_size=2)
    assert {int(step): loss for step, loss in found.items()} == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [(1, "adamw"), pytest.param(1, "muon", marks=pytest.mark.soak), (3, "adamw")],
)
def test_killed_ranks_go_on_to_the_same_weights(
    work: PretrainWork, tmp_path: Path, stage: int, optimizer: str
) -> None:
    settings = {"zero": {"stage": stage}, "optimizer": optimizer}
    whole = moved(work, tmp_path / "whole", **settings)
    expected = run_ranks(whole, tmp_path)
    cut = moved(work, tmp_path / "cut", **settings)
    run_ranks(cut, tmp_path, kill_after=12)
    rest = replace(
        moved(work, tmp_path / "rest", **settings), earlier_checkpoints=(cut.checkpoints,)
    )
    resumed = run_ranks(rest, tmp_path)
    assert min(map(int, resumed)) == 11
    assert resumed == {step: expected[step] for step in resumed}
    assert weights(rest) == weights(whole)


def test_no_compiler_is_needed_and_nothing_is_compiled(work: PretrainWork, tmp_path: Path) -> None:
    extensions, empty = tmp_path / "extensions", tmp_path / "bin"
    extensions.mkdir()
    empty.mkdir()
    run_ranks(
        moved(work, tmp_path, optimizer="muon"),
        tmp_path,
        PATH=str(empty),
        CC="/nonexistent",
        CXX="/nonexistent",
        TORCH_EXTENSIONS_DIR=str(extensions),
    )
    assert list(extensions.iterdir()) == []
