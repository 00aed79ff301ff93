"""How much of a base is trained: all of it, adapters beside it, or the head alone."""

import weakref
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainers.errors import DataError
from trainers.optim import layers_below_top
from trainers.task_config import Hyperparameters
from trainers.task_model import is_of_head


def reads_features_alone(settings: Hyperparameters) -> bool:
    """Whether a training reads the same of the base in every epoch, and of whole texts."""
    return settings.method == "head" and not settings.token_dropout and not settings.prefix_loss


def freeze(model: PreTrainedModel, settings: Hyperparameters, epoch: int | None = None) -> None:
    """Leave trainable what the method trains: in one epoch, or in any where `epoch` is None.

    With gradual unfreezing the first epoch trains the head, and each further one a layer more from
    the top. Source: Howard and Ruder 2018, arXiv:1801.06146, 3.3.

    Raises:
        DataError: more layers are to be frozen than there are.
    """
    if settings.method == "lora":
        return
    depth = int(model.config.num_hidden_layers)
    if settings.frozen_layers > depth:
        raise DataError(f"frozen_layers is {settings.frozen_layers}; the base has {depth} layers")
    deepest = 0 if settings.method == "head" else depth + 1  # that of the embeddings
    if settings.frozen_layers:
        deepest = min(deepest, depth - settings.frozen_layers)
    if settings.gradual_unfreezing and epoch is not None:
        deepest = min(deepest, epoch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_level(model, name, depth) <= deepest)
    if settings.method == "head":
        _hold_still(model.base_model)


def add_adapters(model: PreTrainedModel, settings: Hyperparameters, *, trains_head: bool) -> Any:
    """Make low-rank adapters, one beside each matrix of the base, a part of the model.

    Source: Hu et al. 2021, arXiv:2106.09685. All but the adapters, and a new head, is frozen.

    Returns:
        The `peft.PeftModel` that saves the adapters, and merges them into the model.
    """
    from peft import LoraConfig, get_peft_model

    parts = {
        name: part
        for name, part in model.named_modules()
        if any(True for _ in part.parameters(recurse=False))
    }
    of_head = [name for name in parts if is_of_head(model, name)]
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=[
            name
            for name, part in parts.items()
            if isinstance(part, nn.Linear | Conv1D) and name not in of_head
        ],
        modules_to_save=of_head if trains_head else None,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in parts.values()),
    )
    return get_peft_model(model, config)


def _hold_still(base: nn.Module) -> None:
    """Have a frozen base say the same of a text each time: without dropout, while heads train."""
    base.eval()
    held = weakref.ref(base)  # a circle of references would outlive the trial
    base.train = lambda *_: held()  # type: ignore[assignment,method-assign]


def _level(model: PreTrainedModel, name: str, depth: int) -> int:
    """0 for the head, 1 for the uppermost layer and what is above it, ... the embeddings last."""
    return 0 if is_of_head(model, name) else max(1, layers_below_top(name, depth))
