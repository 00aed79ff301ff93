"""ZeRO settings to DeepSpeed's dictionary: the only place where DeepSpeed's key names stand."""

from typing import Any

from trainers.config import ZeroConfig


def deepspeed_config(
    zero: ZeroConfig,
    *,
    micro_batch_size: int,
    micro_batches: int,
    precision: str,
    gradient_clipping: float,
    uses_muon: bool,
) -> dict[str, Any]:
    """What `deepspeed.initialize(config=...)` takes.

    Args:
        zero: the user's section.
        micro_batch_size: sequences of one forward pass on one worker.
        micro_batches: forward passes of one worker in one optimizer step.
        precision: `fp32` or `bf16`.
        gradient_clipping: largest global gradient norm; 0.0 is none.
        uses_muon: whether the optimizer is Muon, which needs whole gradients.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": gradient_clipping,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": zero.stage, "reduce_scatter": not uses_muon},
        # AdamW is torch's own, which ZeRO shards like DeepSpeed's.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
