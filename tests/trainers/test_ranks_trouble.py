"""Trouble and branches on two ranks: all decide alike, whatever ZeRO shards."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_ranks import run_ranks, weights
from worlds import moved, prepare

from trainers.pretrain import PretrainWork

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("trouble"))


def facts(work: PretrainWork) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work.output / "pretraining.json").read_text())
    return found


@pytest.fixture(scope="module")
def expected(
    work: PretrainWork, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, float], dict[str, Any]]:
    """Losses and facts without ZeRO."""
    folder = tmp_path_factory.mktemp("without")
    troubled = moved(work, folder, watch={"patience": 2}, zero={"stage": 0})
    losses = run_ranks(troubled, folder, poisoned_rank=0, poisoned_steps=range(12, 14))
    return losses, facts(troubled)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_numbers_that_are_none_on_one_rank_take_all_ranks_back(
    work: PretrainWork,
    expected: tuple[dict[str, float], dict[str, Any]],
    tmp_path: Path,
    stage: int,
) -> None:
    troubled = moved(work, tmp_path, watch={"patience": 2}, zero={"stage": stage})
    losses = run_ranks(troubled, tmp_path, poisoned_rank=1, poisoned_steps=range(12, 14))
    found = facts(troubled)
    (rollback,) = found["rollbacks"]
    assert (rollback["after_step"], rollback["to_step"]) == (13, 10)
    assert found["samples_digest"] == expected[1]["samples_digest"]
    assert losses == pytest.approx(expected[0], abs=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_step_that_leaps_changes_no_weight_of_any_rank(
    work: PretrainWork, tmp_path: Path, stage: int
) -> None:
    few = {"tokens": 10 * 8 * 16, "schedule": {"name": "constant"}, "zero": {"stage": stage}}
    watch = {"window": 10, "sigma": 30.0}
    good = moved(work, tmp_path / "good", **few, watch=watch)
    run_ranks(good, tmp_path)
    longer = {**few, "tokens": 12 * 8 * 16, "watch": watch}
    leaping = moved(work, tmp_path / "leaping", **longer)
    run_ranks(leaping, tmp_path, poisoned_rank=1, poisoned_steps=range(11, 13), poison=1000.0)
    assert facts(leaping)["skipped_steps"] == 2
    assert weights(leaping) == weights(good)


def test_branch_on_two_ranks_leaves_the_trunk_as_it_was(work: PretrainWork, tmp_path: Path) -> None:
    wsd = {"name": "wsd", "decay": 0.2}
    plain = moved(work, tmp_path / "plain", schedule=wsd, zero={"stage": 3})
    run_ranks(plain, tmp_path)
    branched = moved(
        work, tmp_path / "branched", schedule={**wsd, "branches": [0.5]}, zero={"stage": 3}
    )
    run_ranks(branched, tmp_path)
    assert weights(branched) == weights(plain)
    assert [branch["start_step"] for branch in facts(branched)["branches"]] == [10]
