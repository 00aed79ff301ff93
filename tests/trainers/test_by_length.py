"""Rows are asked about together where they are of similar length, and as many as memory allows."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from trainers.errors import OutOfMemoryError
from trainers.task_types.base import TOKENS_AT_ONCE, Encoded, by_length


def rows_of(*lengths: int) -> Encoded:
    return Encoded([np.zeros(length, dtype=np.int64) for length in lengths], [])


def asked(rows: Encoded, at_once: int, room: int | None = None) -> list[list[int]]:
    """Lengths that were asked about together; with more tokens than `room` memory runs out."""
    batches: list[list[int]] = []

    def answer(chosen: Sequence[int]) -> list[int]:
        lengths = [len(rows.ids[row]) for row in chosen]
        batches.append(lengths)
        if room is not None and len(lengths) * max(lengths) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(chosen)

    assert by_length(rows, at_once, answer) == list(range(len(rows)))  # in the order of the rows
    return batches


def test_rows_of_similar_length_are_asked_about_together() -> None:
    assert asked(rows_of(9, 2, 7, 1, 8), at_once=2) == [[1, 2], [7, 8], [9]]


def test_of_long_rows_few_are_asked_about_together() -> None:
    half = TOKENS_AT_ONCE // 2
    batches = asked(rows_of(half, 3, half, 2 * TOKENS_AT_ONCE, half + 1, 3), at_once=64)
    assert batches == [[3, 3], [half, half], [half + 1], [2 * TOKENS_AT_ONCE]]
    full = [TOKENS_AT_ONCE // 64] * 64
    assert asked(rows_of(*full), at_once=64) == [full]


def test_where_memory_runs_out_half_of_what_was_asked_is_asked() -> None:
    quarter = TOKENS_AT_ONCE // 4
    batches = asked(rows_of(*[quarter] * 4), at_once=64, room=2 * quarter)
    assert [len(batch) for batch in batches] == [4, 2, 2]


def test_one_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OutOfMemoryError):
        asked(rows_of(5, 4), at_once=2, room=3)
