"""ZeRO-3 from the beginning, offload and precision on two ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_ranks import run_ranks, weights
from worlds import Reports, moved, prepare, run

from trainers.config import ModelConfig
from trainers.pretrain import PretrainWork

pytestmark = pytest.mark.slow

STEPS: dict[str, Any] = {"tokens": 4 * 8 * 16, "checkpoint": {"every_steps": 100}}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("sharding"))


@pytest.fixture(scope="module")
def whole(work: PretrainWork, tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    """A finished training in one process."""
    done = moved(work, tmp_path_factory.mktemp("whole"), **STEPS)
    run(done, Reports())
    return done


def test_zero_3_goes_on_from_an_existing_model(
    work: PretrainWork, whole: PretrainWork, tmp_path: Path
) -> None:
    network = ModelConfig.model_validate({"from": str(whole.output)})
    further = replace(work, model=network)
    expected = run(moved(further, tmp_path / "one", **STEPS), Reports()).losses
    found = run_ranks(moved(further, tmp_path / "two", **STEPS, zero={"stage": 3}), tmp_path)
    assert {int(step): loss for step, loss in found.items()} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "zero",
    [
        {"stage": 1, "offload_optimizer": "cpu"},
        {"stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    ],
)
def test_offload_to_the_host_changes_no_result(
    work: PretrainWork, tmp_path: Path, zero: dict[str, Any]
) -> None:
    plain = moved(work, tmp_path / "plain", **STEPS, zero={"stage": zero["stage"]})
    expected = run_ranks(plain, tmp_path)
    offloaded = moved(work, tmp_path / "offloaded", **STEPS, zero=zero)
    assert run_ranks(offloaded, tmp_path) == pytest.approx(expected, abs=1e-6)
    assert weights(offloaded).keys() == weights(plain).keys()


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_is_near_fp32(work: PretrainWork, tmp_path: Path, stage: int) -> None:
    exact = run(moved(work, tmp_path / "fp32", **STEPS), Reports()).losses
    rough = moved(work, tmp_path / "bf16", **STEPS, zero={"stage": stage}, precision="bf16")
    found = {int(step): loss for step, loss in run_ranks(rough, tmp_path).items()}
    assert found == pytest.approx(exact, abs=1e-2)
    assert found != pytest.approx(exact, abs=1e-7)
