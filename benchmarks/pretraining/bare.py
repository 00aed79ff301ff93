"""What an expert's own loop has in common, with DeepSpeed and without; nothing of this project."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import MODEL, ROWS, Request
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM


def build_model(shared: Path, request: Request) -> nn.Module:
    """The model with its first weights, which follow from the seed."""
    config = AutoConfig.from_pretrained(str(shared / MODEL))
    torch.manual_seed(request.seed)
    return AutoModelForCausalLM.from_config(config)


def parameter_groups(model: nn.Module, request: Request) -> list[dict[str, Any]]:
    """Hidden matrices decay; norms and embeddings, of which one is the head too, do not."""
    decaying = set(decaying_names(model))
    named = list(model.named_parameters())
    return [
        {
            "params": [p for name, p in named if name in decaying],
            "weight_decay": request.weight_decay,
        },
        {"params": [p for name, p in named if name not in decaying], "weight_decay": 0.0},
    ]


def decaying_names(model: nn.Module) -> list[str]:
    """Of the parameters that decay."""
    named = model.named_parameters()
    return [name for name, p in named if p.dim() >= 2 and "embed_tokens" not in name]


def build_optimizer(model: nn.Module, request: Request) -> torch.optim.AdamW:
    """PyTorch's fused AdamW."""
    groups = parameter_groups(model, request)
    return torch.optim.AdamW(groups, lr=request.learning_rate, betas=request.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Before a step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def load_rows(shared: Path) -> Tensor:
    """All batches in memory, shape (steps, sequences, length)."""
    return torch.from_numpy(np.load(shared / ROWS))
