"""Options of pretraining that change only its speed and memory; each acts, is refused, or warns."""

import logging
import os

import torch
from transformers import PreTrainedModel

from trainers.engine import Engine
from trainers.errors import DataError
from trainers.pretrain_config import Attention, PretrainConfig

logger = logging.getLogger(__name__)

_NEEDS_GPU = ("flash_attention_2", "flex_attention")


def require_attention(attention: Attention | None, device: torch.device) -> None:
    """Refuse an attention that cannot be trained on this device.

    The kernels of `flash_attention_2` are for GPUs, and on CPUs PyTorch (2.13) has no backward pass
    of `flex_attention`. What a family or an installation lacks shows when the model is built.

    Raises:
        DataError: names the option and a way out.
    """
    if attention in _NEEDS_GPU and device.type == "cpu":
        raise DataError(
            f"pretrain.attention: {attention} needs a GPU; set sdpa or eager, or give "
            "cluster.pretrain.gpus"
        )


def prepare_model(model: PreTrainedModel, config: PretrainConfig) -> None:
    """Set what must be set before there is an engine.

    Raises:
        DataError: the family has no activation checkpointing.
    """
    if not config.activation_checkpointing:
        return
    try:
        # Reentrant checkpoints would lose gradients where no input of a layer needs one.
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise DataError(
            f"pretrain.activation_checkpointing: the family {model.config.model_type} of "
            f"transformers has none ({error}); drop it"
        ) from error


def prepare_engine(engine: Engine, config: PretrainConfig) -> None:
    """Set what is set on the engine; warns where that has no effect."""
    if not config.compile:
        return
    reason = _why_not_compiled(engine.device)
    if reason is None:
        engine.compile()
    else:
        logger.warning("pretrain.compile has no effect here: %s", reason)


def _why_not_compiled(device: torch.device) -> str | None:
    """None where torch.compile compiles."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "TORCHDYNAMO_DISABLE is 1, as it is on CPUs with several workers or with muon"
    if device.type != "cpu":
        return None
    # Only here: it takes a second.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "on a CPU torch.compile needs a C++ compiler, and there is none"
    return None
