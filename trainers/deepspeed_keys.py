"""Which of DeepSpeed's settings the user may state, and which follow from our own fields. Pure.

DeepSpeed (0.19.8) refuses unknown keys inside most of its sections, but passes over an unknown
section in silence. So the sections that do something here are listed.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

_ZERO = "zero_optimization"

_INSTEAD: Mapping[str, str] = {
    "train_batch_size": "pretrain.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "cluster.pretrain.micro_batch_size",
    "gradient_accumulation_steps": "pretrain.global_batch_tokens, from which it follows",
    "managed_gradient_accumulation": "pretrain.global_batch_tokens, from which it follows",
    "gradient_clipping": "pretrain.gradient_clipping",
    "optimizer": "pretrain.optimizer, learning_rate, betas and weight_decay",
    "scheduler": "pretrain.schedule",
    "zero_allow_untested_optimizer": "pretrain.optimizer",
    "zero_force_ds_cpu_optimizer": "pretrain.zero.offload_optimizer",
    "bf16.enabled": "pretrain.precision",
    "bfloat16": "pretrain.precision",
    "fp16.enabled": "pretrain.precision",
    "fp16.auto_cast": "pretrain.precision",
    "amp": "pretrain.precision",
    "torch_autocast": "pretrain.precision",
    "data_types.param_dtype": "pretrain.precision",
    f"{_ZERO}.stage": "pretrain.zero.stage",
    f"{_ZERO}.reduce_scatter": "pretrain.optimizer, from which it follows",
    f"{_ZERO}.cpu_offload": "pretrain.zero.offload_optimizer",
    f"{_ZERO}.cpu_offload_param": "pretrain.zero.offload_parameters",
    f"{_ZERO}.cpu_offload_use_pin_memory": f"{_ZERO}.offload_optimizer.pin_memory",
    f"{_ZERO}.offload_optimizer.device": "pretrain.zero.offload_optimizer",
    f"{_ZERO}.offload_optimizer.nvme_path": "pretrain.zero.nvme_path",
    f"{_ZERO}.offload_param.device": "pretrain.zero.offload_parameters",
    f"{_ZERO}.offload_param.nvme_path": "pretrain.zero.nvme_path",
    "checkpoint.load_universal": "pretrain.checkpoint",
    "elasticity": "cluster.pretrain.workers",
    "steps_per_print": "pretrain.evaluation; steps are reported by Pretune",
}
"""By dotted key: what to set instead of it."""

_SECTIONS: Mapping[str, frozenset[str] | None] = {
    _ZERO: None,
    "bf16": None,
    "fp16": None,
    "aio": frozenset(
        [
            "block_size",
            "queue_depth",
            "intra_op_parallelism",
            "single_submit",
            "overlap_events",
            "use_gds",
        ]
    ),
    "checkpoint": frozenset(("parallel_write", "use_node_local_storage", "tag_validation")),
    "comms_logger": None,
    "communication_data_type": None,
    "csv_monitor": None,
    "data_types": frozenset(("grad_accum_dtype", "buffer_dtype", "keep_in_fp32_modules")),
    "disable_allgather": None,
    "disable_python_gc": None,
    "dump_state": None,
    "flops_profiler": None,
    "gradient_predivide_factor": None,
    "memory_breakdown": None,
    "prescale_gradients": None,
    "tensorboard": None,
    "timers": None,
    "wall_clock_breakdown": None,
    "wandb": None,
}
"""What is passed on: all keys, which DeepSpeed checks itself, or those it does not check."""


def problems(settings: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What is wrong with settings for DeepSpeed, each with the way out.

    Args:
        settings: what the user wrote, nested as DeepSpeed wants it.
        ours: by dotted key what we shall set, as far as it is known.
    """
    found = []
    for path, value in _leaves(settings):
        if path in ours and ours[path] == value:
            continue
        owner = next((name for name in _prefixes(path) if name in _INSTEAD), None)
        if owner is not None:
            found.append(f"{path}: {value!r} is not DeepSpeed's to say here; set {_INSTEAD[owner]}")
        else:
            found += _unknown(path, value)
    return found


def merged(ours: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Our dictionary with the user's settings over it, section by section."""
    result = dict(ours)
    for name, value in settings.items():
        below = result.get(name)
        is_section = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[name] = merged(below, value) if is_section else value  # type: ignore[arg-type]
    return result


def _unknown(path: str, value: Any) -> Iterator[str]:
    section, _, key = path.partition(".")
    if section not in _SECTIONS:
        near = difflib.get_close_matches(section, _SECTIONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(_SECTIONS)}"
        yield f"{path}: DeepSpeed would pass over it, or it does nothing here; {hint}"
        return
    keys = _SECTIONS[section]
    if keys is not None and key.partition(".")[0] not in keys:
        yield f"{path}: no such key; valid in {section} are {', '.join(sorted(keys))}"
    elif section == _ZERO and not key:
        yield f"{path}: is a section of keys (got {value!r})"


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])
