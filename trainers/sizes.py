"""Parameters of a network and the memory their training takes, from the pipeline file alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainers.config import POSITION_FIELDS, ModelConfig
from trainers.pretrain_config import Precision, ZeroConfig

_ROTARY_DECODERS = ("llama", "qwen2", "qwen3", "mistral")
_ENCODERS = ("bert", "roberta")

_STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
_OFFLOAD_ALL = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
_WORKERS = tuple(2**power for power in range(1, 13))

_LEAST_PERSISTENT = 10_000
SMALL = 1 << 24
"""Elements that any device has room for; in fp32 67 MB."""
_MOST_BUCKET, _MOST_PERSISTENT, _MOST_LIVE = 500_000_000, 100_000, 1_000_000_000
"""DeepSpeed's own sizes (0.19.8)."""

_WEIGHT_BYTES: Mapping[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
_ADAM_BYTES = 8


@dataclass(frozen=True)
class NetworkSize:
    """Of a network with its language-model head."""

    parameters: int
    """Tied ones once."""
    table: int
    """Of these, in the table of token embeddings: as a rule the largest weight."""
    is_tied: bool
    """Whether the head is that table too."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, on its device but for `host`. Activations and libraries come on top."""

    weights: int
    gradients: int
    optimizer: int
    """Adam's two moments and, where DeepSpeed keeps one, the copy of the weights in fp32."""
    buffers: int = 0
    """What is there beside these at the worst moment of a step."""
    host: int = 0
    """In the host's memory for what is offloaded to it; on a CPU it is the same memory."""

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.buffers


def memory_per_rank(
    network: NetworkSize, *, ranks: int, precision: Precision, zero: ZeroConfig
) -> MemoryEstimate:
    """Most of what one rank holds at once for a model trained with Adam by DeepSpeed 0.19.8.

    With w bytes a weight (4, or 2 in bf16 and fp16), P parameters and N ranks:

    ======  =======  =========  ==============  ===================================
    stage   weights  gradients  optimizer       note
    ======  =======  =========  ==============  ===================================
    alone   4 P      4 P        8 P             torch alone, in autocast
    0       w P      w P        8 P, or 12 P    12: a copy in fp32 of lower precision
    1       w P      w P        12 P / N        a copy in fp32 also of fp32 weights
    2       w P      w P / N    12 P / N
    3       w P / N  w P / N    12 P / N
    ======  =======  =========  ==============  ===================================

    Sources: Rajbhandari et al. 2019, arXiv:1910.02054, 3.1 and 5 (K = 12); in DeepSpeed's
    stage_1_and_2.py `single_partition_of_fp32_groups`, in its stage3.py
    `fp32_partitioned_groups_flat` and `grad_partitions_flat_buffer`. On top come buffers, see
    `_in_backward` and `_in_update`: the worse of the two moments counts. Several micro-batches a
    step are assumed. What is offloaded to nvme passes through the host's memory: not counted.
    """
    parameters, weight = network.parameters, _WEIGHT_BYTES[precision]
    if ranks == 1:
        copy = weight if precision != "fp32" else 0  # autocast keeps it until the backward pass
        buffers = copy * parameters + 4 * _coming_gradients(network)
        return MemoryEstimate(4 * parameters, 4 * parameters, _ADAM_BYTES * parameters, buffers)
    share = -(-parameters // ranks)
    has_copy = zero.stage > 0 or precision != "fp32"
    optimizer = (_ADAM_BYTES + 4 * has_copy) * (share if zero.stage else parameters)
    weights = weight * (share if zero.stage == 3 else parameters)
    gradients = weight * (share if zero.stage >= 2 else parameters)
    most = weight * _in_backward(network, share, zero)
    host = 0
    if zero.offload_optimizer != "none":
        gone = optimizer + _gradients_on_host(parameters, share, weight, zero)
        host += gone if zero.offload_optimizer == "cpu" else 0
        optimizer = gradients = 0
    else:
        in_update = _in_update(weight, zero) * (share if zero.stage else parameters)
        most = max(most, in_update - gradients)
    if zero.stage == 3:
        most += weight * bucket_elements(parameters)  # gradients are gathered there, always
    if zero.offload_parameters != "none":
        host += weights if zero.offload_parameters == "cpu" else 0
        weights = 0
    return MemoryEstimate(weights, gradients, optimizer, most, host)


def _gradients_on_host(parameters: int, share: int, weight: int, zero: ZeroConfig) -> int:
    """Bytes beside an offloaded optimizer, which runs on gradients that are copied to it."""
    if zero.stage == 3:
        return weight * share
    # The updated share goes back through a copy in the weights' precision.
    copied = (4 + weight) * share
    # Stage 1 sums whole gradients of micro-batches there.
    return copied + 4 * parameters if zero.stage == 1 else copied


def _coming_gradients(network: NetworkSize) -> int:
    """Elements of gradients of the table that are there before they are one: of head and table."""
    return network.table * (2 if network.is_tied else 1)


def _in_backward(network: NetworkSize, share: int, zero: ZeroConfig) -> int:
    """Elements beside weights and gradients at the worst moment of a backward pass.

    A bucket is filled and flattened into a copy that is sent (`allreduce_bucket`); a weight that is
    larger than a bucket is sent alone. From the first bucket on stages 1 and 2 copy a rank's share
    of the sums to a place of its own (`copy_grads_in_partition`); stage 2 has that of the earlier
    micro-batches, too. Stage 3 gathers weights into a buffer, then copies them out of it.
    """
    parameters, table = network.parameters, network.table
    bucket, coming = bucket_elements(parameters), _coming_gradients(network)
    own = share if bucket < parameters and zero.offload_optimizer == "none" else 0
    match zero.stage:
        case 0:
            return max(coming, min(parameters, _MOST_BUCKET))
        case 1:
            return max(bucket + coming, own + table)
        case 2:
            return max(2 * bucket, own + 2 * bucket + coming + table if own else 0)
        case 3:
            alone = table if table > bucket else 0
            return live_elements(parameters) + max(bucket, table) + coming + alone


def _in_update(weight: int, zero: ZeroConfig) -> int:
    """Bytes of a rank's gradients, each, while the optimizer runs.

    As they came; flattened by stages 1 and 2, and by 3 in lower precision; in fp32 where they are
    not, and by stage 3 always.
    """
    is_lower = weight < 4
    match zero.stage:
        case 0:
            return weight + 4 * is_lower
        case 3:
            return weight + 4 + weight * is_lower
        case _:
            return 2 * weight + 4 * is_lower


def what_would_fit(
    network: NetworkSize,
    *,
    ranks: int,
    precision: Precision,
    zero: ZeroConfig,
    device_bytes: float,
    has_host: bool,
) -> list[str]:
    """Changes of the pipeline file after which the model states fit a device, gentlest first.

    Empty where they fit already, and where nothing of this helps. Offloading helps where a device
    has memory of its own (`has_host`).
    """

    def fits(workers: int, changed: ZeroConfig) -> bool:
        estimate = memory_per_rank(network, ranks=workers, precision=precision, zero=changed)
        return estimate.total <= device_bytes

    if fits(ranks, zero):
        return []
    found = []
    if ranks > 1:
        stage = next((s for s in _STAGES if s > zero.stage and fits(ranks, ZeroConfig(stage=s))), 0)
        if stage:
            found.append(f"pretrain.zero.stage: {stage}")
    if ranks > 1 and has_host:
        for state in ({"offload_optimizer": "cpu"}, _OFFLOAD_ALL):
            if fits(ranks, ZeroConfig.model_validate({"stage": 3, **state})):
                settings = ", ".join(f"{name}: {place}" for name, place in state.items())
                found.append(f"pretrain.zero: {{stage: 3, {settings}}}")
                break
    sharded = ZeroConfig(stage=3)
    workers = next((n for n in _WORKERS if n > ranks and fits(n, sharded)), 0)
    if workers:
        found.append(f"cluster.pretrain.workers: {workers} with pretrain.zero.stage: 3")
    return found


def bucket_elements(parameters: int) -> int:
    """Gradients or weights that DeepSpeed sends at once, in elements; its buffers are as large.

    A sixteenth of the model, or all of a small one, for which more messages cost more than they
    save: on two CPUs a fifth of ZeRO-2's speed. DeepSpeed's own 5e8 would be most of what a small
    model takes. Zero parameters are unknown.
    """
    return _at_a_time(parameters // 16, parameters, _MOST_BUCKET)


def persistent_elements(parameters: int) -> int:
    """Weights up to this size stay whole on each rank under ZeRO-3: norms and biases.

    Below some size gathering a weight takes longer than it saves memory, in every model.
    """
    return min(_MOST_PERSISTENT, max(_LEAST_PERSISTENT, parameters // 1000))


def live_elements(parameters: int) -> int:
    """Weights gathered at a time under ZeRO-3, in elements, beyond the layer that computes.

    An eighth of the model, or all of a small one. DeepSpeed's own 1e9 would gather a larger model
    whole, too, and leave it so until the step ends.
    """
    return _at_a_time(parameters // 8, parameters, _MOST_LIVE)


def _at_a_time(share: int, parameters: int, most: int) -> int:
    return min(most, max(share, min(parameters, SMALL))) or most


def network_size(model: ModelConfig, vocab_size: int, max_positions: int) -> NetworkSize | None:
    """How large the network is that the section describes.

    Args:
        model: the user's section.
        vocab_size: tokens of the tokenizer.
        max_positions: of the network where `model.config` states none: the sequence length.

    Returns:
        None where the section does not tell: an existing checkpoint, another family, a size left
        to `transformers` or stated twice and differently, cross attention.
    """
    is_stated = any(field in model.config for field in POSITION_FIELDS)
    if model.architecture == "roberta" and not is_stated:
        return None  # as many more as the padding token's number says
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
) -> NetworkSize | None:
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
    table, is_tied = vocab_size * hidden, bool(settings.get("tie_word_embeddings", False))
    total = table + layers * (attention + feed_forward + 2 * hidden) + hidden
    return NetworkSize(total if is_tied else total + table, table, is_tied)


def _of_gpt2(settings: Mapping[str, Any], vocab_size: int) -> NetworkSize | None:
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
    table, is_tied = vocab_size * hidden, bool(settings.get("tie_word_embeddings", True))
    embeddings = table + positions * hidden
    total = embeddings + layers * (attention + feed_forward + 4 * hidden) + 2 * hidden
    return NetworkSize(total if is_tied else total + table, table, is_tied)


def _of_encoder(settings: Mapping[str, Any], vocab_size: int) -> NetworkSize | None:
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
    is_tied = bool(settings.get("tie_word_embeddings", True))
    if not is_tied:
        head += _linear(hidden, vocab_size)
    total = embeddings + layers * (attention + feed_forward + 4 * hidden) + head
    return NetworkSize(total, vocab_size * hidden, is_tied)


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
