"""Several documents in one sequence, each as if it stood alone, and the loss that goes with it.

A sequence packed by `best_fit` is a row of segments. Each begins with the end token; the room that
is left at the end of a sequence is filled with end tokens, which are segments of one token each.
So the ids alone say where documents begin. A token sees its own segment and no other, and its
position is counted from the beginning of its segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
)

from trainers.config import Objective
from trainers.whole_words import WordBounds

IGNORED_LABEL = -100

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Masking:
    """How the masked objective hides tokens."""

    probability: float
    mask_token: int
    vocab_size: int
    words: WordBounds | None = None
    """Of the tokenizer's tokens: then words are hidden whole."""


def causal_batch(ids: Tensor, end_token: int) -> Batch:
    """Packed sequences for the causal objective.

    The last token of a document predicts the end token behind it, be it that of the next segment
    or the first of the filling. The rest of the filling is not predicted, nor is the first token
    of a sequence, which nothing precedes.

    Args:
        ids: token ids, shape (sequences, length).
        end_token: opens each segment.

    Returns:
        `packed_inputs`, and `labels` (not shifted: the model does that).
    """
    is_end = ids == end_token
    is_unpredicted = is_end & is_end.roll(1, dims=1)
    is_unpredicted[:, 0] = True
    labels = ids.masked_fill(is_unpredicted, IGNORED_LABEL)
    return {**packed_inputs(ids, "causal", end_token), "labels": labels}


def masked_batch(
    ids: Tensor, positions: Sequence[int], masking: Masking, seed: int, end_token: int
) -> Batch:
    """Packed sequences for the masked objective; end tokens are never hidden.

    Args:
        ids: token ids, shape (sequences, length).
        positions: of the sequences in the order of training.
        masking: probability, mask token and vocabulary.
        seed: of training.
        end_token: opens each segment.

    Returns:
        `packed_inputs` with hidden tokens, and `labels`.
    """
    hidden = hide_tokens(ids, ids != end_token, positions, masking, seed)
    return {**packed_inputs(ids, "masked", end_token), **hidden}


def packed_inputs(ids: Tensor, objective: Objective, end_token: int) -> Batch:
    """What the model of an objective must be told to keep segments apart.

    Decoders of transformers do so where positions begin anew, if they are given no attention mask.
    Encoders need one, which has `length` times as many elements as the ids: so the batch has the
    number of each token's segment, and `model_inputs` makes the mask of one micro-batch, on its
    device.

    Args:
        ids: token ids, shape (sequences, length).
        objective: of the model.
        end_token: opens each segment.

    Returns:
        `input_ids`, `position_ids` and, for the masked objective, `segments`; all of one shape.
    """
    is_end = ids == end_token
    places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    starts = torch.where(is_end, places, 0).cummax(1).values
    inputs = {"input_ids": ids, "position_ids": places - starts}
    return inputs if objective == "causal" else {**inputs, "segments": is_end.cumsum(1)}


def hide_tokens(
    ids: Tensor, candidates: Tensor, positions: Sequence[int], masking: Masking, seed: int
) -> Batch:
    """Hide tokens for the masked objective: 80 % mask, 10 % random, 10 % as they were.

    Masks follow from each sample's position alone, so neither resuming nor another number of
    workers changes them. Source: Devlin et al. 2019, arXiv:1810.04805, 3.1; of whole words: Cui et
    al. 2019, arXiv:1906.08101, 2.1. As in BERT each token of a hidden word has its own fate.

    Args:
        ids: token ids, shape (sequences, length).
        candidates: true for tokens that may be hidden, same shape. Of each sequence's candidates
            the same share is hidden, and one at least; of whole words so many that the share is
            reached.
        positions: of the sequences in the order of training.
        masking: probability, mask token and vocabulary.
        seed: of training.
    """
    input_ids, labels = ids.clone(), torch.full_like(ids, IGNORED_LABEL)
    for row, position in enumerate(positions):
        generator = np.random.default_rng([seed, position])
        places = candidates[row].nonzero().squeeze(1)
        hidden = max(1, round(masking.probability * len(places)))
        order = (
            generator.permutation(len(places))[:hidden]
            if masking.words is None
            else _whole_words(_words(ids[row], masking.words)[places], hidden, generator)
        )
        chosen = places[torch.from_numpy(order)]
        labels[row, chosen] = ids[row, chosen]
        fate = torch.from_numpy(generator.random(len(chosen)))
        substitutes = torch.from_numpy(generator.integers(0, masking.vocab_size, len(chosen)))
        kept = input_ids[row, chosen]
        replaced = torch.where(fate < 0.9, substitutes, kept)
        input_ids[row, chosen] = torch.where(
            fate < 0.8, torch.full_like(kept, masking.mask_token), replaced
        )
    return {"input_ids": input_ids, "labels": labels}


def _words(ids: Tensor, bounds: WordBounds) -> NDArray[np.int64]:
    """The number of each token's word in one sequence; a word that was cut off counts as one."""
    tokens = ids.numpy()
    is_first = bounds.begins[tokens]
    is_first[1:] |= bounds.ends[tokens[:-1]]
    return np.cumsum(is_first, dtype=np.int64)


def _whole_words(
    words: NDArray[np.int64], wanted: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Numbers of tokens that are all of random words, as many words as it takes to have `wanted`.

    Args:
        words: the number of each token's word, ascending.
        wanted: least number of tokens.
        generator: of the choice.
    """
    _, word, sizes = np.unique(words, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    taken = 1 + int(np.searchsorted(sizes[order].cumsum(), wanted))
    is_taken = np.zeros(len(sizes), dtype=np.bool_)
    is_taken[order[:taken]] = True
    return np.flatnonzero(is_taken[word])


def language_model_loss(
    module: nn.Module, batch: Batch, targets_per_sequence: float | None = None
) -> Tensor:
    """Cross-entropy over predicted tokens, as the model's own head computes it.

    Args:
        module: the model, or DeepSpeed's engine around it.
        batch: of either objective, packed or not.
        targets_per_sequence: None gives the mean over the batch's predicted tokens. A number gives
            their sum / (sequences * `targets_per_sequence`): where sequences predict different
            numbers of tokens, only so has each the same weight however a global batch is cut into
            micro-batches. Needs labels that are ignored wherever nothing is predicted.
    """
    mean: Tensor = module(**model_inputs(module, batch)).loss
    if targets_per_sequence is None:
        return mean
    labels = batch["labels"]
    # Not `num_items_in_batch`: BERT, RoBERTa and others with a loss of their own ignore it.
    counted = (labels != IGNORED_LABEL).sum()
    return mean.float() * (counted / (len(labels) * targets_per_sequence))


def model_inputs(module: nn.Module, batch: Batch) -> dict[str, Any]:
    """A batch as the model's arguments: `segments` becomes the attention mask of an encoder."""
    if "segments" not in batch:
        return dict(batch)
    model: Any = getattr(module, "module", module)  # DeepSpeed's engine has a `config` of its own
    inputs = {name: tensor for name, tensor in batch.items() if name != "segments"}
    inputs["position_ids"] = batch["position_ids"] + first_position(model)
    inputs["attention_mask"] = _attention_mask(model, batch["segments"])
    return inputs


def first_position(model: Any) -> int:
    """Where positions begin: for RoBERTa and its kin behind the number of the padding token."""
    return int(getattr(getattr(model.base_model, "embeddings", None), "padding_idx", -1)) + 1


def _attention_mask(model: Any, segments: Tensor) -> Any:
    """True where both tokens are of one segment, in the form the model's attention reads.

    Where some layers see only a window it is one mask for each kind of layer, as ModernBERT asks:
    one mask for all would take the window away.
    """

    def is_same_segment(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segments[row, query] == segments[row, key]

    arguments = {
        "config": model.config,
        # Only shape, type and device are read.
        "inputs_embeds": torch.empty(*segments.shape, 0, dtype=model.dtype, device=segments.device),
        "attention_mask": None,
        "and_mask_function": is_same_segment,
    }
    whole = create_bidirectional_mask(**arguments)
    if "sliding_attention" not in (getattr(model.config, "layer_types", None) or ()):
        return whole
    window = create_bidirectional_sliding_window_mask(**arguments)
    return {"full_attention": whole, "sliding_attention": window}
