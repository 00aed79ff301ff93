"""One optimizer step with DeepSpeed, on one rank of many."""

import contextlib
import io
import math
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.deepspeed_setup import import_deepspeed, require_runnable
from trainers.deepspeed_swap import all_in_memory, read_each_once
from trainers.engine import (
    Accept,
    Clock,
    LossFunction,
    StepResult,
    Write,
    nothing,
    set_learning_rate_of,
    to_device,
)
from trainers.errors import DataError
from trainers.optim import whole_shape
from trainers.pretrain_config import ZeroConfig
from trainers.segments import Batch
from trainers.zero import deepspeed_config

_TAG = "state"
_FOR_CONVERSION = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.4}}
"""Without it DeepSpeed converts no checkpoint of stages 1 and 2. No vocabulary is padded here."""


@dataclass
class _Judgement:
    """Of the step that is about to be taken."""

    accept: Accept
    loss: float
    norm: float = math.inf
    is_accepted: bool | None = None
    gradients: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    """Parameters and their gradients, of a step that is not taken."""

    def take(self, norm: float | Tensor) -> None:
        """Judge, once the gradient norm is known."""
        self.norm = float(norm)
        self.is_accepted = self.accept(self.loss, self.norm)


class _ComingMean:
    """Of a value over all ranks, brought together while something else is computed. Collective."""

    def __init__(self, value: Tensor) -> None:
        self._total = value.detach().clone().float()
        self._sum = torch.distributed.all_reduce(self._total, async_op=True)

    def wait(self) -> Tensor:
        """The mean; on a GPU it may still be under way there."""
        self._sum.wait()
        return self._total / torch.distributed.get_world_size()


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
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        deepspeed = import_deepspeed(device)
        require_runnable(zero, precision, device)
        # Without ZeRO and in fp32 DeepSpeed clips but keeps the norm to itself: then we clip.
        self._own_clipping = gradient_clipping if zero.stage == 0 and precision == "fp32" else None
        self._scales_loss = precision == "fp16"
        self.clock = Clock()
        self._judgement: _Judgement | None = None
        optimizer.register_step_pre_hook(self._before_update)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=module.to(device),
            optimizer=optimizer,
            config=deepspeed_config(
                zero,
                micro_batch_size=micro_batch_size,
                micro_batches=micro_batches,
                precision=precision,
                gradient_clipping=0.0 if self._own_clipping is not None else gradient_clipping,
                uses_muon=type(optimizer).__name__ == "MuonWithAuxAdam",
                parameters=sum(math.prod(whole_shape(p)) for p in module.parameters()),
                on_gpu=device.type != "cpu",
                settings=settings,
            ),
        )
        # With offload gradients are buffers that ZeRO fills anew for each step.
        self._keeps_gradients = any(
            getattr(self._optimizer, name, False) for name in ("cpu_offload", "offload_optimizer")
        )
        self.module: nn.Module = self._engine.module
        read_each_once(self.module)
        self.device, self._loss_function = device, loss_function
        self._stage = zero.stage
        self._uses_muon = type(optimizer).__name__ == "MuonWithAuxAdam"
        self.layout: Mapping[str, Any] = {
            "kind": "DeepSpeed",
            "zero.stage": zero.stage,
            "optimizer": type(optimizer).__name__,
            "precision": precision,
        }
        self.before_update: Callable[[], None] = nothing
        self._files = _files()
        self._engine.checkpoint_engine = self._files
        # Scripts that DeepSpeed lays beside each checkpoint: nobody runs them here.
        self._engine._copy_recovery_script = lambda folder: None  # noqa: ARG005, SLF001

    def set_learning_rate(self, learning_rate: float) -> None:
        """Before a step; groups scale it."""
        set_learning_rate_of(self._optimizer, learning_rate)

    def compile(self) -> None:
        """Have torch.compile translate the module at its next call; names stay as they are."""
        self._engine.compile()

    def step(self, micro_batches: Sequence[Batch], accept: Accept | None = None) -> StepResult:
        """One optimizer step over this rank's micro-batches. Collective."""
        started = time.perf_counter()
        losses: list[Tensor] = []
        for batch in micro_batches:
            if losses:
                self._engine.step()  # between micro-batches it only counts
            loss = self._loss_function(self._engine, to_device(batch, self.device))
            losses.append(loss.detach())
            if len(losses) == len(micro_batches):  # under way during the last backward pass
                coming = _ComingMean(torch.stack(losses).mean())
            if self._uses_muon:  # its momentum moves while gradients are reduced
                self.before_update()
            self._engine.backward(loss)
        loss = coming.wait()
        if accept is not None:
            self._judgement = _Judgement(accept, float(loss))
        between = time.perf_counter()
        self.before_update()
        self._engine.step()
        result = self._result(loss)
        self.clock.forward_backward += between - started
        self.clock.optimizer += time.perf_counter() - between
        return result

    def _before_update(self, optimizer: Optimizer, *_: object) -> None:
        """Have a step judged before it is taken: ZeRO calls the optimizer once per group."""
        norm: Any = None
        if self._own_clipping is not None:
            largest = self._own_clipping or math.inf
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), largest)
        judgement = self._judgement
        if judgement is None:
            return
        if judgement.is_accepted is None:
            if norm is None:  # the engine's own getter is set behind the step
                norm = self._optimizer._global_grad_norm  # noqa: SLF001
            judgement.take(norm)
        if judgement.is_accepted:
            return
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # Muon updates where there is no gradient, too
            for parameter in group["params"]:
                judgement.gradients.append((parameter, parameter.grad))
                parameter.grad = None

    def _result(self, loss: Tensor) -> StepResult:
        judgement, self._judgement = self._judgement, None
        if judgement is None:
            return StepResult(loss)
        if judgement.is_accepted is None:  # DeepSpeed itself dropped what is no number
            # In fp16 that is how the loss scale is found, unless the loss is none either.
            if not (self._scales_loss and math.isfinite(judgement.loss)):
                judgement.accept(judgement.loss, math.inf)
            return StepResult(loss, math.inf, is_applied=False)
        if self._keeps_gradients:
            for parameter, gradient in judgement.gradients:
                if parameter.numel():  # it is in a file again otherwise
                    parameter.grad = gradient
        return StepResult(loss, judgement.norm, judgement.is_accepted)

    def mean(self, value: Tensor) -> float:
        """The mean over all ranks. Collective."""
        return float(_ComingMean(value).wait())

    def save(self, directory: Path, write: Write = torch.save) -> None:
        """Every rank gives `write` its shard, in DeepSpeed's own format; not what is frozen.

        Collective.
        """
        self._files.write = write
        with all_in_memory(self._optimizer, changes=False):
            self._engine.save_checkpoint(
                str(directory),
                tag=_TAG,
                save_latest=False,
                client_state=_FOR_CONVERSION,
                exclude_frozen_parameters=True,
            )

    def load(self, directory: Path) -> None:
        """Every rank reads its shard. Collective."""
        has_frozen = not all(parameter.requires_grad for parameter in self.module.parameters())
        with all_in_memory(self._optimizer, changes=True):
            path, _ = self._engine.load_checkpoint(
                str(directory),
                tag=_TAG,
                load_lr_scheduler_states=False,
                load_module_strict=not has_frozen,
            )
        if path is None:  # DeepSpeed warns and goes on from scratch; we do not
            raise RuntimeError(f"DeepSpeed found no checkpoint in {directory}")

    def load_of_others(self, directory: Path, converted: Path, *, converts: bool) -> None:
        """Go on from what another number of ranks wrote, by way of a universal checkpoint."""
        if self._stage == 0:  # all ranks hold everything, and rank 0 wrote it
            self.load(directory)
            return
        if self._uses_muon:
            raise DataError(
                f"{directory} was written by another number of workers, and DeepSpeed's universal "
                "checkpoints do not carry Muon's momentum; set cluster.pretrain.workers back, or "
                "remove the folder to train from the start"
            )
        if converts:
            _convert(directory / _TAG, converted / _TAG)
        torch.distributed.barrier()
        settings = self._engine._config  # noqa: SLF001 -- a setting of the whole engine otherwise
        groups = [_without_parameters(group) for group in self._optimizer.param_groups]
        settings.load_universal_checkpoint = True
        try:
            self.load(converted)
        finally:
            settings.load_universal_checkpoint = False
        self._mend(groups)
        torch.distributed.barrier()

    def _mend(self, groups: list[dict[str, Any]]) -> None:
        """Put right what loading a universal checkpoint leaves wrong (DeepSpeed 0.19.8).

        With stage 3 all groups get the first one's settings (weight decay!), and all states share
        one `step` tensor, which an update then counts up once for each of them.
        """
        for group, settings in zip(self._optimizer.param_groups, groups, strict=True):
            group.update(settings)
        for state in self._engine.basic_optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU of rank 0, gathered one at a time. Collective."""
        import deepspeed

        # An evaluation's forward pass leaves parameters on their way that its backward would need.
        self._engine.empty_partition_cache()
        whole: dict[str, Tensor] = {}
        is_first = torch.distributed.get_rank() == 0
        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if is_first:
                    whole[name] = parameter.detach().cpu().clone()
        return whole


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _convert(source: Path, target: Path) -> None:
    """Write a universal checkpoint; what the converter prints and its progress bars are dropped."""
    from deepspeed.checkpoint import ds_to_universal

    target.mkdir(parents=True)
    settings = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ds_to_universal.main(settings)


def _files() -> Any:
    """How DeepSpeed's engine writes and reads files, on our terms."""
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class Files(CheckpointEngine):  # type: ignore[misc]
        """Hands what is saved to `write`; reads what was verified."""

        write: Write = staticmethod(torch.save)

        def create(self, info: Any) -> None:
            """Nothing: the folder is there."""

        def save(self, state_dict: Any, path: str) -> None:
            """Hand over."""
            self.write(state_dict, Path(path))

        def load(self, path: str, map_location: Any = None) -> Any:
            """Read; whoever calls has compared the bytes with their digest."""
            return torch.load(path, map_location=map_location, weights_only=False)

        def commit(self, info: Any) -> bool:
            """Nothing: the manifest does that."""
            return True

    return Files()
