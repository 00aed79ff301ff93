"""Options of pretraining under DeepSpeed on two ranks."""

from pathlib import Path

import pytest
from test_ranks import run_ranks, weights
from worlds import moved, prepare

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", [1, 3])
def test_activation_checkpointing_under_zero_changes_no_loss(tmp_path: Path, stage: int) -> None:
    work = prepare(tmp_path / "world")
    settings = {"zero": {"stage": stage}}
    plain = moved(work, tmp_path / "plain", **settings)
    expected = run_ranks(plain, tmp_path / "plain")
    checked = moved(work, tmp_path / "checked", activation_checkpointing=True, **settings)
    found = run_ranks(checked, tmp_path / "checked")
    assert found == expected
    assert weights(checked) == weights(plain)


def test_compiling_under_deepspeed_on_a_cpu_changes_nothing(tmp_path: Path) -> None:
    work = prepare(tmp_path / "world")
    expected = run_ranks(moved(work, tmp_path / "plain"), tmp_path / "plain")
    assert run_ranks(moved(work, tmp_path / "c", compile=True), tmp_path / "c") == expected


def test_embeddings_do_not_decay_under_zero_3_either(tmp_path: Path) -> None:
    work = prepare(tmp_path / "world")
    settings = {"weight_decay": 10.0, "learning_rate": 1e-2, "tokens": 8 * 8 * 16}
    one, three = (
        moved(work, tmp_path / str(stage), zero={"stage": stage}, **settings) for stage in (1, 3)
    )
    expected = run_ranks(one, tmp_path / "1")
    assert run_ranks(three, tmp_path / "3") == pytest.approx(expected, abs=1e-4)
