"""What a pretraining is told. Loads no torch: who only hands it on begins at once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainers.config import ModelConfig
from trainers.pretrain_config import PretrainConfig

FACTS = "pretraining.json"
"""Beside the model: the facts of its training."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class PretrainWork:
    """What is trained, and where its inputs and outputs are."""

    model: ModelConfig
    pretrain: PretrainConfig
    base: Path
    """Folder of the pipeline file, for `model.from`."""
    tokenizer: Path
    tokens: Callable[[str], Path]
    """Opens a file of the folder of tokens on this node."""
    weights: tuple[float, ...]
    """Times the sequences of each source of the corpus come in one epoch."""
    output: Path
    """Gets the Hugging Face folder and `pretraining.json`."""
    checkpoints: Path
    """Gets this attempt's checkpoints."""
    earlier_checkpoints: tuple[Path, ...]
    """Of attempts before this one; only read."""
    should_stop: Callable[[], bool] = _never
    """Asked on rank 0: then all ranks save a checkpoint and raise `StoppedError`."""


@dataclass(frozen=True)
class PretrainExecution:
    """How it is run; changes no result."""

    threads: int
    """Of one rank."""
    micro_batch_size: int | None
    use_gpu: bool
    hang_after_s: float = 120.0
    """Least seconds without a step after which this rank ends itself; see `Deadline`."""


def micro_batch_size(local_batch: int, wanted: int | None) -> int:
    """The largest divisor of a worker's share of the global batch that is at most `wanted`."""
    limit = min(local_batch, wanted or local_batch)
    return next(size for size in range(limit, 0, -1) if local_batch % size == 0)
