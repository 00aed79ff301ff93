"""DeepSpeed before an engine is there: imported, asked what can run here, models built sharded."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from trainers.errors import DataError
from trainers.pretrain_config import ZeroConfig
from trainers.zero import deepspeed_config


def import_deepspeed(device: torch.device) -> Any:
    """The module, set up for a device; joins the process group where there is one."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Muon's kernels are marked for torch.compile, which on a CPU needs a C++ compiler.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # DeepSpeed calls what torch has renamed, and torch says so at every collective.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
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


def require_runnable(zero: ZeroConfig, precision: str, device: torch.device) -> None:
    """Refuse here what DeepSpeed would refuse later, or not at all.

    Raises:
        DataError: this machine cannot do it.
    """
    from deepspeed.accelerator import get_accelerator

    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise DataError(
            f"pretrain.precision: fp16 does not run on this {device.type}; set bf16, fp32 or auto"
        )
    if "nvme" in (zero.offload_optimizer, zero.offload_parameters):
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise DataError(
                "offload to nvme needs DeepSpeed's async_io, which cannot be built here: install "
                "libaio with its headers (libaio-dev) and a C++ compiler on every node, or set "
                "pretrain.zero.offload_optimizer and offload_parameters to cpu or none"
            )
        _let_ninja_be_found()


def _let_ninja_be_found() -> None:
    """Builds look for it in PATH; DeepSpeed brings it along beside Python, not always in there."""
    beside_python = str(Path(sys.executable).parent)
    places = os.environ.get("PATH", "").split(os.pathsep)
    if beside_python not in places:
        os.environ["PATH"] = os.pathsep.join([*places, beside_python])


def muon(groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
    """DeepSpeed's Muon with AdamW beside it, for either engine; see `optim.muon_groups`."""
    import_deepspeed(device)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    optimizer: Optimizer = MuonWithAuxAdam(groups)
    return optimizer


class ShardedConstruction:
    """Builds models whose weights are spread over the ranks from the beginning, for ZeRO-3.

    Each layer is whole on a rank only while it is made: then every rank keeps its share.
    Collective.
    """

    def __init__(
        self,
        zero: ZeroConfig,
        precision: str,
        device: torch.device,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._deepspeed = import_deepspeed(device)
        require_runnable(zero, precision, device)
        # Batches and clipping do not matter here, but DeepSpeed wants a whole dictionary.
        self._config = deepspeed_config(
            zero,
            micro_batch_size=1,
            micro_batches=1,
            precision=precision,
            gradient_clipping=0.0,
            uses_muon=False,
            parameters=0,
            on_gpu=device.type != "cpu",
            settings=settings,
        )

    def new(self, build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """A model with random weights, on a CPU in fp32 the ones it would have if it were whole.

        On a GPU, or in a lower precision, torch draws other numbers than it would on a CPU.
        `from_config` of `transformers` under ZeRO-3 leaves out the random numbers that modules
        draw for themselves when they are made, so the seed would always give other weights.
        """
        from transformers.integrations.deepspeed import prevent_arange_dtype_change

        with (
            _gathered_for_own_weights(),
            prevent_arange_dtype_change(),
            self._deepspeed.zero.Init(config_dict_or_path=self._config),
        ):
            return build()

    def existing(self, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """A model with the weights that `load` reads; rank 0 alone reads them."""
        from transformers.integrations import deepspeed as integration

        stage_3 = _Stage3(self._config)
        integration.set_hf_deepspeed_config(stage_3)
        try:
            return load()
        finally:
            integration.unset_hf_deepspeed_config()

    def spread(self, model: PreTrainedModel) -> None:
        """Leave a whole model's rank its share; on the device one parameter at a time is whole."""
        self._deepspeed.zero.Init(module=model, config_dict_or_path=self._config)


class _Stage3:
    """What `transformers` asks of its `HfDeepSpeedConfig`, which needs the package accelerate."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True


@contextmanager
def _gathered_for_own_weights() -> Iterator[None]:
    """Models draw their weights at the end of their constructor on rank 0, layer by layer."""
    from transformers.integrations.deepspeed import initialize_weights_zero3

    original = PreTrainedModel.init_weights

    def init_weights(self: PreTrainedModel) -> None:
        initialize_weights_zero3(self)
        self.tie_weights(recompute_mapping=False)

    PreTrainedModel.init_weights = init_weights
    try:
        yield
    finally:
        PreTrainedModel.init_weights = original
