"""Out of memory, told apart from all else that code may raise."""

import contextlib
from collections.abc import Iterator

import torch

from trainers.errors import OutOfMemoryError

# Where memory lacks, torch on a CPU, oneDNN and CUDA's libraries raise a plain RuntimeError.
_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a memory object",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def exhaustion_told_apart() -> Iterator[None]:
    """What runs out of memory in the block raises `OutOfMemoryError`, whoever noticed it."""
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OutOfMemoryError(f"out of memory: {lines[0]}") from error
