import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainers import packing
from trainers.packing import Packed

END = 7  # neither the smallest id nor the largest

Documents = list[list[int]]

ids = st.integers(0, 20).filter(lambda number: number != END)
documents = st.lists(st.lists(ids, max_size=30), max_size=30)
lengths = st.integers(2, 12)


def flat(given_documents: Documents) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    joined = [token for document in given_documents for token in document]
    sizes = np.array([len(document) for document in given_documents], dtype=np.int64)
    return np.array(joined, dtype=np.uint16), sizes


def concat(given_documents: Documents, length: int) -> Packed:
    return packing.concat(*flat(given_documents), length, END)


def best_fit(given_documents: Documents, length: int) -> Packed:
    return packing.best_fit(*flat(given_documents), length, END)


def segments(row: list[int]) -> Documents:
    """What stands behind each end token of one sequence, by the ids alone."""
    assert row[0] == END
    found: Documents = []
    for token in row:
        if token == END:
            found.append([])
        else:
            found[-1].append(token)
    return [segment for segment in found if segment]


def lognormal_lengths(count: int, mean: float = 46.0, sigma: float = 0.8) -> NDArray[np.int64]:
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.maximum(1, drawn).astype(np.int64)


@given(documents, lengths)
def test_concat_is_the_documents_joined_and_cut(given_documents: Documents, length: int) -> None:
    packed = concat(given_documents, length)
    stream = [token for document in given_documents for token in [*document, END]]
    whole = len(stream) // length * length
    assert packed.sequences.reshape(-1).tolist() == stream[:whole]
    assert packed.sequences.shape == (whole // length, length)
    assert packed.tokens == len(stream)
    assert packed.end_tokens == stream.count(END)
    assert packed.dropped_tokens == len(stream) - whole
    assert packed.targets == len(packed.sequences) * (length - 1)


@given(documents, lengths)
def test_concat_counts_the_documents_it_cuts(given_documents: Documents, length: int) -> None:
    numbered = [
        (number, is_end)
        for number, document in enumerate(given_documents)
        for is_end in [*[False] * len(document), True]
    ]
    places: dict[int, set[int]] = {}
    for position, (number, is_end) in enumerate(numbered):
        if not is_end:
            places.setdefault(number, set()).add(position // length)
    cut = sum(len(found) > 1 for found in places.values())
    assert concat(given_documents, length).split_documents == cut


@given(documents, lengths)
def test_best_fit_keeps_every_document_and_cuts_only_the_long(
    given_documents: Documents, length: int
) -> None:
    most = length - 1
    expected = [
        document[start : start + most]
        for document in given_documents
        for start in range(0, len(document), most)
    ]
    packed = best_fit(given_documents, length)
    found = [segment for row in packed.sequences.tolist() for segment in segments(row)]
    assert sorted(found) == sorted(expected)
    assert packed.split_documents == sum(len(document) > most for document in given_documents)
    assert packed.tokens == sum(map(len, expected)) + len(expected)
    assert packed.end_tokens == len(expected)


@given(st.lists(st.integers(1, 40), max_size=20), lengths)
def test_documents_can_be_read_off_the_ids_in_order(sizes: list[int], length: int) -> None:
    # Each token is told apart, so that the pieces of a document can be put together again.
    starts = np.cumsum([1000, *sizes])
    given_documents = [list(range(a, a + n)) for a, n in zip(starts[:-1], sizes, strict=True)]
    rows = best_fit(given_documents, length).sequences.tolist()
    pieces = sorted(segment for row in rows for segment in segments(row))
    assert [t for piece in pieces for t in piece] == [t for d in given_documents for t in d]
    for row in rows:  # equal sizes in document order, larger ones first
        keys = [(-len(segment), segment[0]) for segment in segments(row)]
        assert keys == sorted(keys)


@given(documents, lengths)
def test_filling_stands_only_at_the_end_and_teaches_once(
    given_documents: Documents, length: int
) -> None:
    packed = best_fit(given_documents, length)
    padding = targets = 0
    for row in packed.sequences.tolist():
        tail = len(row) - len("".join("e" if t == END else "d" for t in row).rstrip("e"))
        padding += tail
        doubled = [i for i in range(1, length) if row[i] == END == row[i - 1]]
        assert all(i > length - tail for i in doubled)
        targets += length - 1 - len(doubled)
    assert packed.padding == padding
    assert packed.targets == targets
    assert packed.sequences.size == packed.tokens + packed.padding


@given(documents, lengths)
def test_no_two_sequences_fit_into_one(given_documents: Documents, length: int) -> None:
    rows = best_fit(given_documents, length).sequences.tolist()
    filled = sorted(sum(len(segment) + 1 for segment in segments(row)) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > length


def test_segment_goes_where_the_least_room_is_left() -> None:
    given_documents = [[1] * 5, [2] * 6, [3] * 2]  # sizes with their end tokens: 6, 7, 3
    assert best_fit(given_documents, 10).sequences.tolist() == [
        [END, 2, 2, 2, 2, 2, 2, END, 3, 3],
        [END, 1, 1, 1, 1, 1, END, END, END, END],
    ]


@pytest.mark.parametrize("pack", [packing.concat, packing.best_fit])
def test_type_of_the_ids_is_kept(pack: object) -> None:
    for dtype in (np.uint16, np.uint32):
        packed = pack(np.arange(20, dtype=dtype), np.array([20]), 4, 50)  # type: ignore[operator]
        assert packed.sequences.dtype == dtype


def test_less_than_two_in_a_thousand_is_padding_on_lognormal_lengths() -> None:
    sizes = lognormal_lengths(20_000)
    packed = packing.best_fit(np.ones(sizes.sum(), dtype=np.uint16), sizes, 512, END)
    assert 44 < sizes.mean() < 48
    assert packed.padding / packed.sequences.size < 0.002


def test_fifty_thousand_documents_are_packed_in_well_under_a_second() -> None:
    sizes = lognormal_lengths(50_000, mean=400.0)
    stream = np.ones(sizes.sum(), dtype=np.uint16)
    start = time.process_time()
    packing.best_fit(stream, sizes, 2048, END)
    assert time.process_time() - start < 1.0
