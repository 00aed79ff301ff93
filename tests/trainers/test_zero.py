from typing import Any

import pytest

from trainers.config import ZeroConfig
from trainers.zero import deepspeed_config


def build(stage: int, **settings: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "micro_batch_size": 4,
        "micro_batches": 2,
        "precision": "fp32",
        "gradient_clipping": 1.0,
        "uses_muon": False,
    }
    return deepspeed_config(ZeroConfig(stage=stage), **{**defaults, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_and_batches_are_passed_on(stage: int) -> None:
    config = build(stage)
    assert config["zero_optimization"]["stage"] == stage
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 1.0


@pytest.mark.parametrize(("precision", "expected"), [("fp32", False), ("bf16", True)])
def test_precision_is_passed_on(precision: str, expected: bool) -> None:
    assert build(1, precision=precision)["bf16"]["enabled"] is expected


def test_muon_gets_whole_gradients() -> None:
    assert build(2)["zero_optimization"]["reduce_scatter"] is True
    assert build(2, uses_muon=True)["zero_optimization"]["reduce_scatter"] is False
