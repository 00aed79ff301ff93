"""Our settings to DeepSpeed's dictionary; `deepspeed_keys` says what users may add to it."""

from collections.abc import Mapping
from typing import Any

from trainers.deepspeed_keys import merged
from trainers.pretrain_config import Offload, ZeroConfig
from trainers.sizes import bucket_elements, live_elements, persistent_elements


def deepspeed_config(
    zero: ZeroConfig,
    *,
    micro_batch_size: int,
    micro_batches: int,
    precision: str,
    gradient_clipping: float,
    uses_muon: bool,
    parameters: int,
    on_gpu: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `deepspeed.initialize(config=...)` takes.

    Args:
        zero: the user's section.
        micro_batch_size: sequences of one forward pass on one worker.
        micro_batches: forward passes of one worker in one optimizer step.
        precision: `fp32`, `bf16` or `fp16`.
        gradient_clipping: largest global gradient norm; 0.0 is none.
        uses_muon: whether the optimizer is Muon, which needs whole gradients.
        parameters: of the whole network; 0 where it is not built yet.
        on_gpu: whether there is a device to copy to, for which host memory is locked.
        settings: what the user tells DeepSpeed directly, already found to be in order.
    """
    bucket = bucket_elements(parameters)
    optimization: dict[str, Any] = {
        "stage": zero.stage,
        "reduce_scatter": not uses_muon,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if zero.stage == 3:
        optimization["stage3_prefetch_bucket_size"] = bucket
        optimization["stage3_param_persistence_threshold"] = persistent_elements(parameters)
        optimization["stage3_max_live_parameters"] = live_elements(parameters)
        optimization["stage3_max_reuse_distance"] = live_elements(parameters)
    for name, device in (
        ("offload_optimizer", zero.offload_optimizer),
        ("offload_param", zero.offload_parameters),
    ):
        if device != "none":
            optimization[name] = _offload(device, zero.nvme_path, on_gpu=on_gpu)
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": gradient_clipping,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_optimization": optimization,
        # AdamW is torch's own, which ZeRO shards and offloads like DeepSpeed's.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        # One tag on all ranks is ours to see to: no collective to compare them.
        "checkpoint": {"tag_validation": "Ignore"},
        "wall_clock_breakdown": False,
    }
    return merged(ours, settings or {})


def _offload(device: Offload, nvme_path: str | None, *, on_gpu: bool) -> dict[str, Any]:
    section: dict[str, Any] = {"device": device, "pin_memory": on_gpu}
    if device == "nvme":
        section["nvme_path"] = nvme_path
    return section
