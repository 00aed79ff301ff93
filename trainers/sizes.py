"""Parameters of a network and the memory their training takes, from the pipeline file alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainers.config import POSITION_FIELDS, ModelConfig

Precision = Literal["fp32", "bf16"]

_ROTARY_DECODERS = ("llama", "qwen2", "qwen3", "mistral")
_ENCODERS = ("bert", "roberta")

_BYTES_OF_PRECISION: Mapping[Precision, tuple[int, int, int]] = {
    "fp32": (4, 4, 8),
    "bf16": (2, 2, 12),
}
"""Of one parameter: weight, gradient and Adam's state, with bf16 the weight in fp32 too."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the model states on one rank.

    Activations, buffers of communication and what the libraries take come on top; in fp32 also
    the copy of its share of the weights that DeepSpeed's stages 1 and 2 keep (0.19.8).
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Bytes of all model states."""
        return self.weights + self.gradients + self.optimizer


def memory_per_rank(
    parameters: int, *, stage: int, ranks: int, precision: Precision
) -> MemoryEstimate:
    """Model states with Adam; what a ZeRO stage shards is shared evenly by the ranks.

    Source: Rajbhandari et al. 2019, arXiv:1910.02054, 3.1 and 5, K = 12 for mixed precision.
    """
    weight, gradient, optimizer = _BYTES_OF_PRECISION[precision]

    def held(bytes_each: int, first_sharding_stage: int) -> int:
        whole = parameters * bytes_each
        return -(-whole // ranks) if stage >= first_sharding_stage else whole

    return MemoryEstimate(
        weights=held(weight, 3), gradients=held(gradient, 2), optimizer=held(optimizer, 1)
    )


def parameter_count(model: ModelConfig, vocab_size: int, max_positions: int) -> int | None:
    """Parameters of the network with its language-model head, tied ones once.

    Args:
        model: the user's section.
        vocab_size: tokens of the tokenizer.
        max_positions: of the network where `model.config` states none: the sequence length.

    Returns:
        None where the section does not tell: an existing checkpoint, another family, a size left
        to `transformers` or stated twice and differently, cross attention.
    """
    is_stated = any(field in model.config for field in POSITION_FIELDS)
    settings = model.config if is_stated else {"max_position_embeddings": max_positions}
    settings = {**settings, **model.config}
    if settings.get("add_cross_attention"):
        return None
    if model.architecture in _ENCODERS:
        return _of_encoder(settings, vocab_size)
    if model.objective == "masked":  # decoders have no such head
        return None
    if model.architecture in _ROTARY_DECODERS:
        return _of_rotary_decoder(model.architecture, settings, vocab_size)
    return _of_gpt2(settings, vocab_size) if model.architecture == "gpt2" else None


def _of_rotary_decoder(
    architecture: str, settings: Mapping[str, Any], vocab_size: int
) -> int | None:
    hidden = _size(settings, "hidden_size")
    inner = _size(settings, "intermediate_size")
    layers = _size(settings, "num_hidden_layers")
    heads = _size(settings, "num_attention_heads")
    if hidden is None or inner is None or layers is None or heads is None:
        return None
    # Where a family has a default of its own, the size is not derived from the others.
    key_value_heads = _size(
        settings, "num_key_value_heads", default=heads if architecture == "llama" else None
    )
    head_size = _size(
        settings, "head_dim", default=None if architecture == "qwen3" else hidden // heads
    )
    if key_value_heads is None or head_size is None:
        return None
    has_bias = architecture in ("llama", "qwen3") and bool(settings.get("attention_bias"))
    inner_has_bias = architecture == "llama" and bool(settings.get("mlp_bias"))
    attention = (
        _linear(hidden, heads * head_size, bias=has_bias or architecture == "qwen2")
        + 2 * _linear(hidden, key_value_heads * head_size, bias=has_bias or architecture == "qwen2")
        + _linear(heads * head_size, hidden, bias=has_bias)
        + (2 * head_size if architecture == "qwen3" else 0)  # norms of queries and keys
    )
    feed_forward = 2 * _linear(hidden, inner, bias=inner_has_bias) + _linear(
        inner, hidden, bias=inner_has_bias
    )
    embeddings = vocab_size * hidden
    head = 0 if settings.get("tie_word_embeddings", False) else vocab_size * hidden
    return embeddings + layers * (attention + feed_forward + 2 * hidden) + hidden + head


def _of_gpt2(settings: Mapping[str, Any], vocab_size: int) -> int | None:
    hidden = _size(settings, "n_embd", "hidden_size")
    layers = _size(settings, "n_layer", "num_hidden_layers")
    positions = _size(settings, "n_positions", "max_position_embeddings")
    if hidden is None or layers is None or positions is None:
        return None
    inner = _size(settings, "n_inner", default=4 * hidden)
    if inner is None:
        return None
    attention = _linear(hidden, 3 * hidden) + _linear(hidden, hidden)
    feed_forward = _linear(hidden, inner) + _linear(inner, hidden)
    embeddings = (vocab_size + positions) * hidden
    head = 0 if settings.get("tie_word_embeddings", True) else vocab_size * hidden
    return embeddings + layers * (attention + feed_forward + 4 * hidden) + 2 * hidden + head


def _of_encoder(settings: Mapping[str, Any], vocab_size: int) -> int | None:
    hidden = _size(settings, "hidden_size")
    inner = _size(settings, "intermediate_size")
    layers = _size(settings, "num_hidden_layers")
    positions = _size(settings, "max_position_embeddings")
    segments = _size(settings, "type_vocab_size", default=2)
    if hidden is None or inner is None or layers is None or positions is None or segments is None:
        return None
    attention = 4 * _linear(hidden, hidden)
    feed_forward = _linear(hidden, inner) + _linear(inner, hidden)
    embeddings = (vocab_size + positions + segments) * hidden + 2 * hidden
    # The head: a dense layer with a norm, then the vocabulary with two biases that are tied too.
    head = _linear(hidden, hidden) + 2 * hidden + vocab_size
    if not settings.get("tie_word_embeddings", True):
        head += _linear(hidden, vocab_size)
    return embeddings + layers * (attention + feed_forward + 4 * hidden) + head


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _size(settings: Mapping[str, Any], *names: str, default: int | None = None) -> int | None:
    """The size stated under any of its names; None where they disagree or it is no size."""
    stated = [settings[name] for name in names if settings.get(name) is not None]
    if not stated:
        return default
    first, *others = stated
    is_size = type(first) is int and first > 0
    return first if is_size and all(other == first for other in others) else None
