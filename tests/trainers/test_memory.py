import pytest
import torch

from trainers.errors import OutOfMemoryError
from trainers.memory import exhaustion_told_apart


def test_allocation_that_torch_cannot_make_is_told_apart() -> None:
    with pytest.raises(OutOfMemoryError, match="can't allocate memory"), exhaustion_told_apart():
        torch.empty(1 << 60, dtype=torch.uint8)


def test_allocation_that_python_cannot_make_is_told_apart() -> None:
    with pytest.raises(OutOfMemoryError, match="MemoryError"), exhaustion_told_apart():
        bytearray(1 << 62)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), ValueError("no memory")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), exhaustion_told_apart():
        raise error
