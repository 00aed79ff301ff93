from typing import Any

import pytest
from worlds import pretrain_config

from trainers.pretrain_config import ZeroConfig
from trainers.zero import deepspeed_config


def build(stage: int, **settings: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "micro_batch_size": 4,
        "micro_batches": 2,
        "precision": "fp32",
        "gradient_clipping": 1.0,
        "uses_muon": False,
        "parameters": 1_000_000,
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


def test_bf16_and_fp16_are_told_apart() -> None:
    config = build(1, precision="fp16")
    assert (config["fp16"]["enabled"], config["bf16"]["enabled"]) == (True, False)


def test_offload_is_passed_on() -> None:
    zero = ZeroConfig(
        stage=3, offload_optimizer="nvme", offload_parameters="cpu", nvme_path="/disk"
    )
    section = deepspeed_config(
        zero,
        micro_batch_size=1,
        micro_batches=1,
        precision="bf16",
        gradient_clipping=1.0,
        uses_muon=False,
        parameters=10,
    )["zero_optimization"]
    nvme = {"device": "nvme", "pin_memory": True, "nvme_path": "/disk"}
    assert section["offload_optimizer"] == nvme
    assert section["offload_param"] == {"device": "cpu", "pin_memory": True}


def test_settings_of_the_users_own_are_merged() -> None:
    settings = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 5}}
    section = build(2, settings=settings)["zero_optimization"]
    assert (section["stage"], section["overlap_comm"], section["reduce_bucket_size"]) == (
        2,
        True,
        5,
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stage": 0, "offload_optimizer": "cpu"}, "offload_optimizer: cpu needs stage >= 1"),
        ({"stage": 2, "offload_parameters": "cpu"}, "offload_parameters: cpu needs stage 3"),
        ({"stage": 2, "offload_optimizer": "nvme", "nvme_path": "/d"}, "nvme needs stage 3"),
        ({"stage": 3, "offload_parameters": "nvme"}, "nvme needs nvme_path"),
        ({"stage": 3, "nvme_path": "/d"}, "nvme_path goes with"),
    ],
)
def test_offload_that_cannot_be_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ZeroConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage: 3 .* pretrain.zero.stage"),
        ({"optimizer": {"type": "Adam"}}, "optimizer.type: .* set pretrain.optimizer"),
        ({"train_batch_size": 8}, "set pretrain.global_batch_tokens"),
        ({"fp16": {"enabled": True}}, "set pretrain.precision"),
        ({"zero_optimisation": {"overlap_comm": True}}, "did you mean 'zero_optimization'"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "does nothing here"),
        ({"aio": {"queue_deep": 8}}, "no such key; valid in aio are"),
    ],
)
def test_settings_that_are_not_deepspeeds_to_say_are_refused(
    settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        pretrain_config(deepspeed=settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_optimization": {"overlap_comm": True, "stage": 1}},
        {"communication_data_type": "fp32"},
        {"fp16": {"initial_scale_power": 10}},
    ],
)
def test_settings_that_agree_or_have_no_field_are_taken(settings: dict[str, Any]) -> None:
    assert pretrain_config(deepspeed=settings).deepspeed == settings
