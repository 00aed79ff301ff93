"""One optimizer step over micro-batches: what the loop drives, and its form in plain torch.

DeepSpeed's form, on many workers, is in `deepspeed_engine`. Both have the same methods, so the
loop, the trials and the tests do not know which one they drive.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.errors import DataError
from trainers.pretrain_config import Precision, PretrainConfig
from trainers.segments import Batch

LossFunction = Callable[[nn.Module, Batch], Tensor]
Accept = Callable[[float, float], bool]
"""Told the loss and the gradient norm of a step, both over all ranks, says whether it is taken."""
Write = Callable[[Any, Path], None]
"""Writes a state to a file, now or soon."""

_STATE = "state.pt"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


@dataclass(frozen=True)
class StepResult:
    """What became of one optimizer step."""

    loss: Tensor
    """Mean over the micro-batches of all ranks."""
    gradient_norm: float | None = None
    """Over all ranks and before clipping; None where nobody asked for it."""
    is_applied: bool = True
    """Whether weights and optimizer state were changed."""


@dataclass
class Clock:
    """Seconds that the steps of an engine took so far, as this rank's Python saw them.

    A GPU works behind Python: there the optimizer's kernels count where they are waited for.
    """

    forward_backward: float = 0.0
    """Forward and backward passes, gradients and the loss brought together."""
    optimizer: float = 0.0
    """Gradient norm, clipping, update; with ZeRO the weights gathered again."""


class Engine(Protocol):
    """What the training loop drives."""

    module: nn.Module
    device: torch.device
    clock: Clock
    layout: Mapping[str, Any]
    """What a checkpoint must have been written with to be loaded; JSON-able."""
    before_update: Callable[[], None]
    """Called before weights or optimizer state change in a step."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Before a step; groups scale it."""

    def compile(self) -> None:
        """Have torch.compile translate the module at its next call; names stay as they are."""

    def step(self, micro_batches: Sequence[Batch], accept: Accept | None = None) -> StepResult:
        """One optimizer step; with `accept` it waits for the gradient and is taken if it may be.

        All ranks get the same loss and norm, so that all decide alike.
        """

    def mean(self, value: Tensor) -> float:
        """The mean over all ranks. Collective."""

    def save(self, directory: Path, write: Write = torch.save) -> None:
        """Give `write` everything `load` needs. Collective."""

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote with the same number of ranks. Collective."""

    def load_of_others(self, directory: Path, converted: Path, *, converts: bool) -> None:
        """Go on from what another number of ranks wrote. Collective.

        Args:
            directory: what was given to `save`.
            converted: a folder that does not exist yet, for files in between.
            converts: whether this rank writes them; others read them.
        """

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU, tied ones once; on rank 0, elsewhere empty. Collective."""


class PlainEngine:
    """One process, one device. Weights are fp32; forward passes run in `precision` (autocast)."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        loss_function: LossFunction,
        *,
        gradient_clipping: float,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        if precision == "fp16" and device.type == "cpu":
            raise DataError(
                "pretrain.precision: fp16 does not run on this cpu; set bf16, fp32 or auto"
            )
        self.module, self.device = module.to(device), device
        self._frozen = {
            name
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        }
        self._dtype = _DTYPES[precision]
        # Scales the loss where fp16 would lose small gradients; else it does nothing.
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._optimizer, self._loss_function = optimizer, loss_function
        self._gradient_clipping = gradient_clipping
        self.clock = Clock()
        self.is_updating = False
        """Weights and optimizer may have changed in a step that did not end."""
        self.layout: Mapping[str, Any] = {
            "kind": "plain torch",
            "optimizer": type(optimizer).__name__,
        }
        self.before_update: Callable[[], None] = nothing

    def set_learning_rate(self, learning_rate: float) -> None:
        """Before a step; groups scale it."""
        set_learning_rate_of(self._optimizer, learning_rate)

    def compile(self) -> None:
        """Have torch.compile translate the module at its next call; names stay as they are."""
        self.module.compile()

    def step(self, micro_batches: Sequence[Batch], accept: Accept | None = None) -> StepResult:
        """One optimizer step over all micro-batches."""
        started = time.perf_counter()
        losses = []
        for batch in micro_batches:
            with torch.autocast(self.device.type, self._dtype, self._dtype != torch.float32):
                loss = self._loss_function(self.module, to_device(batch, self.device))
            self._scaler.scale(loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        between = time.perf_counter()
        self.before_update()
        self.is_updating = True
        result = self._update(mean, accept)
        self.is_updating = False
        self._optimizer.zero_grad(set_to_none=True)
        self.clock.forward_backward += between - started
        self.clock.optimizer += time.perf_counter() - between
        return result

    def _update(self, loss: Tensor, accept: Accept | None) -> StepResult:
        norm = None
        if accept is not None or self._gradient_clipping:
            self._scaler.unscale_(self._optimizer)
            largest = self._gradient_clipping or math.inf
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), largest)
        if accept is None or norm is None:
            self._take_step()
            return StepResult(loss)
        if self._scaler.is_enabled() and loss.isfinite() and not norm.isfinite():
            self._take_step()  # it is not taken: that is how the loss scale is found
            return StepResult(loss, math.inf, is_applied=False)
        is_accepted = accept(float(loss), float(norm))
        if is_accepted:
            self._take_step()
        return StepResult(loss, float(norm), is_accepted)

    def _take_step(self) -> None:
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def forget_gradients(self) -> None:
        """Of a step that failed: it may be done again."""
        self._optimizer.zero_grad(set_to_none=True)

    def mean(self, value: Tensor) -> float:
        """The value itself: there is one rank."""
        return float(value)

    def save(self, directory: Path, write: Write = torch.save) -> None:
        """Give `write` weights, optimizer and loss scale; not what was frozen from the first."""
        weights = self.module.state_dict()
        state = {
            "module": {name: weights[name] for name in weights if name not in self._frozen},
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        write(state, directory / _STATE)

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(directory / _STATE, map_location=self.device, weights_only=True)
        missing, unexpected = self.module.load_state_dict(state["module"], strict=False)
        buffers = {name for name, _ in self.module.named_buffers()}
        if unexpected or set(missing) - self._frozen - buffers:
            raise DataError(f"{directory} holds the state of another model")
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def load_of_others(self, directory: Path, converted: Path, *, converts: bool) -> None:
        """Go on from what `save` wrote: no other number of ranks has an engine of this kind."""
        self.load(directory)

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU, tied ones once."""
        return {name: p.detach().cpu() for name, p in self.module.named_parameters()}


def device_of(ranks: Ranks, *, use_gpu: bool) -> torch.device:
    """Of this process; of GPUs the one with the number of the rank on its node."""
    if not use_gpu:
        return torch.device("cpu")
    # Ray and torchrun alike: one visible device per local rank, or all of them.
    index = ranks.local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def nothing() -> None:
    """What `before_update` is while nobody copies the state."""


def set_learning_rate_of(optimizer: Any, learning_rate: float) -> None:
    """Before a step; groups scale it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def precision_of(config: PretrainConfig, device: torch.device) -> Precision:
    """bf16 where the accelerator has it; fp32 on a CPU, where bf16 is emulated and far slower."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
