"""Pretraining whose loss or gradients go wrong on purpose."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from worlds import KilledError, Reports, moved, prepare, run

from trainers import segments
from trainers.pretrain import DivergedError, PretrainWork
from trainers.segments import Batch

Poison = Callable[[Tensor], Tensor]
EAGER = {"window": 8, "sigma": 30.0}
true_loss = segments.language_model_loss


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("trouble"))


@pytest.fixture(scope="module")
def samples(work: PretrainWork, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What each step of an untroubled training reads."""
    seen: list[bytes] = []

    def listening(module: nn.Module, batch: Batch, targets: float | None = None, **_: Any) -> Any:
        if module.training:
            seen.append(batch["input_ids"].numpy().tobytes())
        return true_loss(module, batch, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "language_model_loss", listening)
        run(moved(work, tmp_path_factory.mktemp("listening")), Reports())
    return seen


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: set[bytes], poison: Poison) -> None:
    """Let the loss of some samples go wrong, whenever they are read."""

    def loss(module: nn.Module, batch: Batch, targets_per_sequence: float | None = None) -> Tensor:
        found = true_loss(module, batch, targets_per_sequence)
        is_bad = module.training and batch["input_ids"].numpy().tobytes() in bad
        return poison(found) if is_bad else found

    monkeypatch.setattr(segments, "language_model_loss", loss)


def facts(work: PretrainWork) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work.output / "pretraining.json").read_text())
    return found


def weights(work: PretrainWork) -> dict[str, bytes]:
    path = work.output / "model.safetensors"
    return {name: weight.tobytes() for name, weight in load_file(path).items()}


def not_a_number(loss: Tensor) -> Tensor:
    return loss * torch.nan


def leap(loss: Tensor) -> Tensor:
    return loss * 1000


@pytest.mark.parametrize("poison", [not_a_number, leap])
def test_step_that_goes_wrong_is_skipped_and_the_next_one_is_taken(
    work: PretrainWork,
    samples: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Poison,
) -> None:
    poisoned(monkeypatch, {samples[14]}, poison)
    troubled = moved(work, tmp_path, watch=EAGER)
    reports = run(troubled, Reports())
    found = facts(troubled)
    assert (found["skipped_steps"], found["rollbacks"]) == (1, [])
    assert found["samples"] == 20 * 8
    assert reports.losses[20] < 5.0


def test_skipped_step_changes_no_weight(
    work: PretrainWork, samples: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {
        "tokens": 10 * 8 * 16,
        "schedule": {"name": "constant"},
        "watch": {"window": 8, "sigma": 30.0},
    }
    good = moved(work, tmp_path / "good", **few)
    run(good, Reports())
    poisoned(monkeypatch, {samples[10]}, leap)
    longer = moved(work, tmp_path / "longer", **{**few, "tokens": 11 * 8 * 16})
    run(longer, Reports())
    assert facts(longer)["skipped_steps"] == 1
    assert weights(longer) == weights(good)


def test_steps_that_go_wrong_again_and_again_are_left_behind(
    work: PretrainWork, samples: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, set(samples[11:14]), not_a_number)
    troubled = moved(work, tmp_path / "whole", watch={"patience": 2})
    run(troubled, Reports())
    found = facts(troubled)
    (rollback,) = found["rollbacks"]
    assert (rollback["after_step"], rollback["to_step"]) == (13, 10)
    assert rollback["samples"] == [10 * 8, 13 * 8]
    assert found["skipped_steps"] == 1  # the third bad batch comes first after going back
    assert found["samples"] == (20 + 3) * 8
    cut = moved(work, tmp_path / "cut", watch={"patience": 2})
    with pytest.raises(KilledError):
        run(cut, Reports(kill_after=12))
    rest = moved(work, tmp_path / "rest", watch={"patience": 2})
    run(replace(rest, earlier_checkpoints=(cut.checkpoints,)), Reports())
    assert weights(rest) == weights(troubled)
    assert facts(rest)["samples_digest"] == found["samples_digest"]


def test_training_that_does_not_recover_ends_with_the_reason(
    work: PretrainWork, samples: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        segments,
        "language_model_loss",
        lambda module, batch, targets_per_sequence=None: (
            true_loss(module, batch, targets_per_sequence)
            * (torch.nan if batch["input_ids"].numpy().tobytes() not in samples[:12] else 1.0)
        ),
    )
    troubled = moved(work, tmp_path, watch={"patience": 2, "max_rollbacks": 2})
    with pytest.raises(DivergedError, match=r"went back 2 times; lower pretrain.learning_rate"):
        run(troubled, Reports())


def test_trouble_before_the_first_checkpoint_ends_with_the_reason(
    work: PretrainWork, samples: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, set(samples), not_a_number)
    with pytest.raises(DivergedError, match="no checkpoint to go back to"):
        run(moved(work, tmp_path), Reports())
