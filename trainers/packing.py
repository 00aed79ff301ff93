"""Documents' token ids to sequences of one length: what stands in which place. Pure numpy.

Documents come as one flat array of ids, shape (tokens,), and their lengths, shape (documents,).
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[Any]
"""Token ids of any integer type; results have the same."""


@dataclass(frozen=True)
class Packed:
    """Sequences, shape (sequences, length), and what became of the documents."""

    sequences: Ids
    tokens: int
    """Of the documents, with the end token each document or segment has; before anything is
    dropped or filled: `sequences.size` is this, less `dropped_tokens`, and `padding`."""
    end_tokens: int
    """Of these, those of documents or segments."""
    padding: int
    dropped_tokens: int
    """Of the last, incomplete sequence."""
    split_documents: int
    """Documents whose tokens are not all in one sequence."""
    targets: int
    """Next-token predictions that count in the loss."""


def concat(ids: Ids, lengths: NDArray[np.int64], length: int, end: int) -> Packed:
    """Documents one behind the other, each closed by `end`, cut every `length` tokens."""
    closed = np.cumsum(lengths + 1)
    stream = np.full(len(ids) + len(lengths), end, dtype=ids.dtype)
    is_token = np.ones(len(stream), dtype=np.bool_)
    is_token[closed - 1] = False
    stream[is_token] = ids
    count = len(stream) // length
    used = count * length
    first, last = closed - 1 - lengths, np.maximum(closed - 2, 0)
    return Packed(
        sequences=stream[:used].reshape(count, length),
        tokens=len(stream),
        end_tokens=len(lengths),
        padding=0,
        dropped_tokens=len(stream) - used,
        split_documents=int(np.count_nonzero((lengths > 0) & (first // length < last // length))),
        targets=count * (length - 1),
    )


def best_fit(ids: Ids, lengths: NDArray[np.int64], length: int, end: int) -> Packed:
    """Documents whole, each opened by `end`; only those above `length` - 1 tokens are cut.

    What is free at the end of a sequence is filled with `end`. Documents without tokens leave no
    trace. So that the ids alone say where a segment begins, `end` must not be among them.

    Source: Ding et al. 2024, arXiv:2404.10830, section 2.
    """
    starts, sizes = _segments(lengths, length - 1)
    places, count = _places(sizes + 1, length)
    sequences = np.full((count, length), end, dtype=ids.dtype)
    flat = sequences.reshape(-1)
    # Slices and no fancy index: that would take 16 bytes a token, and tokens are two.
    for place, start, size in zip(places, starts.tolist(), sizes.tolist(), strict=True):
        flat[place + 1 : place + 1 + size] = ids[start : start + size]
    tokens = len(ids) + len(sizes)
    padding = sequences.size - tokens
    filled = int(np.count_nonzero(sequences[:, -1] == end))
    return Packed(
        sequences=sequences,
        tokens=tokens,
        end_tokens=len(sizes),
        padding=padding,
        dropped_tokens=0,
        split_documents=int(np.count_nonzero(lengths > length - 1)),
        # The first end token of a filling tells that a document ends; the others tell nothing.
        targets=count * (length - 1) - (padding - filled),
    )


def _segments(lengths: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token and number of tokens of each piece of at most `most`, in document order."""
    pieces = -(-lengths // most)
    document = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = (np.cumsum(lengths) - lengths)[document] + number * most
    return starts, np.minimum(lengths[document] - number * most, most)


def _places(sizes: NDArray[np.int64], length: int) -> tuple[list[int], int]:
    """Best-fit decreasing: each segment's offset in the flat sequences, and their number.

    A segment goes where the least room is left behind it. Equal sizes go in their order, and of
    equal rooms the one made last is taken. Rooms are the bits of one integer, so that the least
    that suffices is found without a search.
    """
    places = [0] * len(sizes)
    count = rooms = 0
    ends_by_room: defaultdict[int, list[int]] = defaultdict(list)
    order = np.argsort(-sizes, kind="stable")
    for segment, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        suffices = rooms >> size
        if suffices:
            room = size + (suffices & -suffices).bit_length() - 1
            ends = ends_by_room[room]
            place = ends.pop()
            if not ends:
                rooms ^= 1 << room
        else:
            room, place = length, count * length
            count += 1
        places[segment] = place
        if left := room - size:
            ends_by_room[left].append(place + size)
            rooms |= 1 << left
    return places, count
