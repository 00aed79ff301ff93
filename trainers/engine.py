"""One optimizer step over micro-batches: with DeepSpeed on many workers, in plain torch on one.

The only module that imports deepspeed. Both engines have the same methods, so the loop, the
trials and the tests do not know which one they drive.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.config import ZeroConfig
from trainers.segments import Batch
from trainers.zero import deepspeed_config

LossFunction = Callable[[nn.Module, Batch], Tensor]

_STATE = "state.pt"
_TAG = "state"


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; from the environment torchrun defines."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Read RANK, WORLD_SIZE and LOCAL_RANK; alone where they are not set."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        defaults = (0, 1, 0)
        return cls(*(int(os.environ.get(n, d)) for n, d in zip(names, defaults, strict=True)))


class Engine(Protocol):
    """What the training loop drives."""

    module: nn.Module
    device: torch.device

    def set_learning_rate(self, learning_rate: float) -> None:
        """Before a step; groups scale it."""

    def step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """One optimizer step; the mean loss over this rank's micro-batches, not synchronised."""

    def mean(self, value: Tensor) -> float:
        """The mean over all ranks. Collective."""

    def save(self, directory: Path) -> None:
        """Write everything `load` needs. Collective."""

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote with the same number of ranks. Collective."""

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU, tied ones once; on rank 0, elsewhere empty. Collective."""


class PlainEngine:
    """One process, one device."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        loss_function: LossFunction,
        *,
        gradient_clipping: float,
        device: torch.device,
    ) -> None:
        self.module, self.device = module.to(device), device
        self._optimizer, self._loss_function = optimizer, loss_function
        self._gradient_clipping = gradient_clipping

    def set_learning_rate(self, learning_rate: float) -> None:
        """Before a step; groups scale it."""
        _set_learning_rate(self._optimizer, learning_rate)

    def step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """One optimizer step; the mean loss over the micro-batches."""
        losses = []
        for batch in micro_batches:
            loss = self._loss_function(self.module, _to(batch, self.device))
            (loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if self._gradient_clipping:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._gradient_clipping)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).mean()

    def mean(self, value: Tensor) -> float:
        """The value itself: there is one rank."""
        return float(value)

    def save(self, directory: Path) -> None:
        """Write weights and optimizer state."""
        state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, directory / _STATE)

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(directory / _STATE, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU, tied ones once."""
        return {name: p.detach().cpu() for name, p in self.module.named_parameters()}


class DeepSpeedEngine:
    """One rank of a process group that torch has already set up."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        loss_function: LossFunction,
        *,
        zero: ZeroConfig,
        micro_batch_size: int,
        micro_batches: int,
        precision: str,
        gradient_clipping: float,
        device: torch.device,
    ) -> None:
        deepspeed = _import_deepspeed(device)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=module.to(device),
            optimizer=optimizer,
            config=deepspeed_config(
                zero,
                micro_batch_size=micro_batch_size,
                micro_batches=micro_batches,
                precision=precision,
                gradient_clipping=gradient_clipping,
                uses_muon=type(optimizer).__name__ == "MuonWithAuxAdam",
            ),
        )
        self.module: nn.Module = self._engine.module
        self.device, self._loss_function = device, loss_function

    def set_learning_rate(self, learning_rate: float) -> None:
        """Before a step; groups scale it."""
        _set_learning_rate(self._optimizer, learning_rate)

    def step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """One optimizer step; the mean loss over this rank's micro-batches."""
        losses = []
        for batch in micro_batches:
            loss = self._loss_function(self._engine, _to(batch, self.device))
            self._engine.backward(loss)
            self._engine.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def mean(self, value: Tensor) -> float:
        """The mean over all ranks. Collective."""
        total = value.detach().clone().float()
        torch.distributed.all_reduce(total)
        return float(total) / torch.distributed.get_world_size()

    def save(self, directory: Path) -> None:
        """Every rank writes its shard. Collective."""
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        """Every rank reads its shard. Collective."""
        path, _ = self._engine.load_checkpoint(
            str(directory), tag=_TAG, load_lr_scheduler_states=False
        )
        if path is None:  # DeepSpeed warns and goes on from scratch; we do not
            raise RuntimeError(f"DeepSpeed found no checkpoint in {directory}")

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU of rank 0, gathered one at a time. Collective."""
        import deepspeed

        whole: dict[str, Tensor] = {}
        is_first = torch.distributed.get_rank() == 0
        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if is_first:
                    whole[name] = parameter.detach().cpu().clone()
        return whole


def muon(groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
    """DeepSpeed's Muon with AdamW beside it, for either engine; see `optim.muon_groups`."""
    _import_deepspeed(device)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    optimizer: Optimizer = MuonWithAuxAdam(groups)
    return optimizer


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Muon's kernels are marked for torch.compile, which on a CPU needs a C++ compiler.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        # On a CPU DeepSpeed tries out which C++ ops would compile, then compiles a shared-memory
        # all-reduce that only inference calls (`comm.inference_all_reduce`). With no op declared
        # compatible it does neither: training needs no compiler and pays for none.
        deepspeed.ops.__compatible_ops__ = {}
    if torch.distributed.is_initialized() and not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    return deepspeed


def _set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
