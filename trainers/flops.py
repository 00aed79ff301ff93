"""Floating-point operations that training needs, and the share of the hardware's that they are."""

import re
from collections.abc import Mapping

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from trainers.optim import embedding_parameters, whole_shape
from trainers.pretrain_config import Precision

_TERA = 1e12

# TFLOP/s of one device, dense (no structured sparsity): bf16 in tensor or matrix cores, None where
# the hardware has none; fp32 outside of them, for TF32 is off unless somebody turns it on. By whole
# words of the name that the driver gives; the first entry that fits counts.
_PEAKS: Mapping[str, tuple[float | None, float]] = {
    "B200": (2250.0, 80.0),  # NVIDIA HGX B200 datasheet, 1000 W; half of the sparse figure
    "H200 NVL": (835.5, 60.0),  # NVIDIA H200 datasheet; half of the sparse figure
    "H200": (989.5, 67.0),  # NVIDIA H200 datasheet, SXM; half of the sparse figure
    "H100 NVL": (835.5, 60.0),  # NVIDIA H100 datasheet; half of the sparse figure
    "H100 PCIe": (756.0, 51.0),  # NVIDIA H100 datasheet of 2022; half of the sparse figure
    "H100": (989.5, 67.0),  # NVIDIA H100 datasheet, SXM; half of the sparse figure
    "A100": (312.0, 19.5),  # NVIDIA A100 datasheet, SXM and PCIe
    "L40S": (362.05, 91.6),  # NVIDIA L40S datasheet
    "L4": (121.0, 30.3),  # NVIDIA L4 datasheet; half of the sparse figure
    "A10": (125.0, 31.2),  # NVIDIA A10 datasheet
    "V100-PCIE": (None, 14.0),  # NVIDIA V100 datasheet
    "V100": (None, 15.7),  # NVIDIA V100 datasheet, SXM2
    "T4": (None, 8.1),  # NVIDIA T4 datasheet
    "MI300X": (1307.4, 163.4),  # AMD Instinct MI300X datasheet
}


def flops_per_token(model: PreTrainedModel, sequence_length: int) -> int | None:
    """Operations of the model for one token, forward and backward; None where experts take turns.

    6 for each weight that is multiplied (a tied head is, its embedding is looked up), and
    12 x layers x width of attention x keys for the attention itself. Source: Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B. As there, a decoder's attention is counted whole, though half of
    it is masked, and so is that between documents which packing keeps apart; layers that see a
    window are counted with that. What activation checkpointing computes again is not counted.

    Args:
        model: its parameters may be sharded by ZeRO-3.
        sequence_length: of training.
    """
    network = model.config
    if any(getattr(network, name, None) for name in ("num_experts_per_tok", "num_local_experts")):
        return None
    looked_up = embedding_parameters(model)
    multiplied = {
        id(parameter): parameter
        for parameter in model.parameters()
        if len(whole_shape(parameter)) >= 2 and id(parameter) not in looked_up
    }
    head = model.get_output_embeddings()
    if head is not None:
        multiplied[id(head.weight)] = head.weight
    weights: int = sum(torch.Size(whole_shape(weight)).numel() for weight in multiplied.values())
    width = int(network.num_attention_heads) * _head_size(network)
    return 6 * weights + 12 * width * sum(_keys(network, sequence_length))


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Operations per second of one device by its datasheet; None where none is known here."""
    if re.search(r"\bMIG\b", device_name):  # a slice of one
        return None
    for name, (bf16, fp32) in _PEAKS.items():
        if re.search(rf"\b{name}\b", device_name):
            peak = bf16 if precision == "bf16" else fp32
            return None if peak is None else peak * _TERA
    return None


def utilisation(
    tokens_per_s_per_device: float,
    *,
    flops_per_token: int | None,
    device: torch.device,
    precision: Precision,
) -> float | None:
    """Share of a device's peak that the model's own operations are (MFU).

    None on a CPU, on hardware whose peak is not known here, and where the operations are not.
    """
    if device.type != "cuda" or flops_per_token is None:
        return None
    peak = peak_flops(torch.cuda.get_device_name(device), precision)
    return None if peak is None else tokens_per_s_per_device * flops_per_token / peak


def _head_size(network: PreTrainedConfig) -> int:
    stated = getattr(network, "head_dim", None)
    return int(stated or network.hidden_size // network.num_attention_heads)


def _keys(network: PreTrainedConfig, sequence_length: int) -> list[int]:
    """Tokens that one token attends to at most, layer by layer."""
    # ModernBERT's `sliding_window` is what it sees to one side, `local_attention` to both.
    window = getattr(network, "local_attention", None) or getattr(network, "sliding_window", None)
    near = min(window or sequence_length, sequence_length)
    kinds = getattr(network, "layer_types", None) or (
        ["sliding_attention" if window else "full_attention"] * network.num_hidden_layers
    )
    return [near if kind == "sliding_attention" else sequence_length for kind in kinds]
