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
    """Matrices decay, the rest does not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": request.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


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
