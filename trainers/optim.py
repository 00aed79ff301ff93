"""Parameter groups: which parameters decay, and with which learning rates."""

import math
import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW

_LAYER_NUMBER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


def adamw(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    layer_decay: float = 1.0,
) -> AdamW:
    """AdamW (arXiv:1711.05101) over the trainable parameters.

    Matrices decay; norms, biases and embeddings do not, nor does a head that shares the weights of
    an embedding: a decayed embedding is pulled to zero in every step, also for those tokens that
    did not occur in it.

    Each group carries `scale`, its learning rate as a share of the scheduled one.
    """
    groups = list(_groups(module, weight_decay, layer_decay))
    return AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def muon_groups(
    module: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> list[dict[str, Any]]:
    """Parameter groups for DeepSpeed's `MuonWithAuxAdam`: hidden matrices and all the rest.

    DeepSpeed multiplies an orthogonalised update of shape (rows, columns) by
    sqrt(max(1, rows / columns)); `scale` turns that into 0.2 sqrt(max(rows, columns)), so that
    updates have the size of AdamW's and one learning rate fits both. Source: Liu et al. 2025,
    arXiv:2502.16982, eq. 4. Tags every parameter with `use_muon`, which ZeRO reads.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    embeddings = embedding_parameters(module)
    for name, parameter in module.named_parameters():
        shape = whole_shape(parameter)
        is_matrix = len(shape) >= 2 and id(parameter) not in embeddings
        use_muon = is_matrix and len(shape) == 2 and _layer(name) is not None
        parameter.use_muon = use_muon  # type: ignore[attr-defined]
        scale = 1.0
        if use_muon:
            rows, columns = shape
            scale = 0.2 * math.sqrt(max(rows, columns) / max(1.0, rows / columns))
        decay = weight_decay if is_matrix else 0.0
        groups.setdefault((use_muon, decay, scale), []).append(parameter)
    adam = {"betas": betas, "eps": 1e-8}
    return [
        {
            "params": parameters,
            "lr": learning_rate,
            "weight_decay": decay,
            "scale": scale,
            "use_muon": use_muon,
            **({} if use_muon else adam),
        }
        for (use_muon, decay, scale), parameters in groups.items()
    ]


def _groups(module: nn.Module, weight_decay: float, layer_decay: float) -> Iterable[dict[str, Any]]:
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    depth = 1 + max((_layer(name) or 0 for name, _ in trainable), default=0)
    embeddings = embedding_parameters(module)
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        is_matrix = len(whole_shape(parameter)) >= 2 and id(parameter) not in embeddings
        decay = weight_decay if is_matrix else 0.0
        scale = layer_decay ** layers_below_top(name, depth)
        grouped.setdefault((decay, scale), []).append(parameter)
    for (decay, scale), parameters in grouped.items():
        yield {"params": parameters, "weight_decay": decay, "scale": scale}


def embedding_parameters(module: nn.Module) -> set[int]:
    """Parameters of tables that are looked up, by `id`; tied heads have the same parameter."""
    tables = (part for part in module.modules() if isinstance(part, nn.Embedding))
    return {id(parameter) for table in tables for parameter in table.parameters(recurse=False)}


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter: ZeRO-3 leaves an empty one and writes down what it was."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _layer(name: str) -> int | None:
    found = _LAYER_NUMBER.search(f".{name}")
    return int(found.group(1)) if found else None


def layers_below_top(name: str, depth: int) -> int:
    """0 for the head and final norm, 1 for the uppermost layer, ... `depth` + 1 for embeddings."""
    layer = _layer(name)
    if layer is not None:
        return depth - layer
    return depth + 1 if "embed" in name or "wte" in name or "wpe" in name else 0
