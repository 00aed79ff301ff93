from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from trainers import flops

H, F, L, V, S = 32, 48, 2, 60, 24
SIZES: dict[str, Any] = {
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": V,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def build(family: str, head: Any, **changes: Any) -> Any:
    return head.from_config(AutoConfig.for_model(family, **{**SIZES, **changes}))


LLAMA_LAYER = 4 * H * H + 3 * H * F
GROUPED_LAYER = 2 * H * H + 2 * H * H // 2 + 3 * H * F
BERT_LAYER = 4 * H * H + 2 * H * F
WIDE_HEADS = 12 * L * 2 * 64 * S
FULL = 12 * L * H * S


@pytest.mark.parametrize(
    ("family", "head", "changes", "expected"),
    [
        ("llama", AutoModelForCausalLM, {}, 6 * (L * LLAMA_LAYER + V * H) + FULL),
        # A tied head is multiplied all the same.
        (
            "llama",
            AutoModelForCausalLM,
            {"tie_word_embeddings": True},
            6 * (L * LLAMA_LAYER + V * H) + FULL,
        ),
        (
            "llama",
            AutoModelForCausalLM,
            {"num_key_value_heads": 1},
            6 * (L * GROUPED_LAYER + V * H) + FULL,
        ),
        (
            "qwen3",
            AutoModelForCausalLM,
            {"head_dim": 64, "num_key_value_heads": 2},
            6 * (L * (4 * H * 2 * 64 + 3 * H * F) + V * H) + WIDE_HEADS,
        ),
        ("gpt2", AutoModelForCausalLM, {}, 6 * (L * 12 * H * H + V * H) + FULL),
        ("bert", AutoModelForMaskedLM, {}, 6 * (L * BERT_LAYER + H * H + V * H) + FULL),
        (
            "mistral",
            AutoModelForCausalLM,
            {"sliding_window": 4, "num_key_value_heads": 2},
            6 * (L * LLAMA_LAYER + V * H) + 12 * L * H * 4,
        ),
        # One layer that sees all and one that sees a window.
        (
            "modernbert",
            AutoModelForMaskedLM,
            {"local_attention": 8, "global_attn_every_n_layers": 2},
            6 * (L * (4 * H * H + 3 * H * F) + H * H + V * H) + 12 * H * (S + 8),
        ),
    ],
)
def test_operations_follow_palms_formula(
    family: str, head: Any, changes: dict[str, Any], expected: int
) -> None:
    assert flops.flops_per_token(build(family, head, **changes), S) == expected


def test_operations_are_those_that_pytorch_counts() -> None:
    """Of the forward pass; the backward pass has twice as many."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build("llama", AutoModelForCausalLM)
    model.set_attn_implementation("eager")
    ids = torch.zeros(1, S, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # The first layer's inputs are embeddings, which need a gradient too.
    counted = counter.get_total_flops() / S
    assert flops.flops_per_token(model, S) == pytest.approx(counted, rel=0.01)


def test_sharded_parameters_count_as_whole_ones() -> None:
    model = build("llama", AutoModelForCausalLM)
    expected = flops.flops_per_token(model, S)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert flops.flops_per_token(model, S) == expected


def test_operations_of_experts_that_take_turns_are_not_guessed() -> None:
    model = build("mixtral", AutoModelForCausalLM, num_key_value_heads=2, num_local_experts=2)
    assert flops.flops_per_token(model, S) is None


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA H100 80GB HBM3", 989.5e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835.5e12, 60e12),
        ("NVIDIA H200", 989.5e12, 67e12),
        ("NVIDIA GH200 480GB", None, None),
        ("NVIDIA B200", 2250e12, 80e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362.05e12, 91.6e12),
        ("NVIDIA L40", None, None),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA A10G", None, None),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla V100-PCIE-16GB", None, 14e12),
        ("Tesla T4", None, 8.1e12),
        ("AMD Instinct MI300X", 1307.4e12, 163.4e12),
        ("NVIDIA GeForce RTX 4090", None, None),
        ("", None, None),
    ],
)
def test_peak_is_the_datasheets_or_none(name: str, bf16: float | None, fp32: float | None) -> None:
    assert flops.peak_flops(name, "bf16") == (bf16 and pytest.approx(bf16))
    assert flops.peak_flops(name, "fp32") == (fp32 and pytest.approx(fp32))


@pytest.mark.parametrize(
    ("name", "per_token", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 6 * 10**9, 6e9 * 20_000 / 312e12),
        ("NVIDIA GeForce RTX 4090", 6 * 10**9, None),
        ("NVIDIA A100-SXM4-80GB", None, None),
    ],
)
def test_utilisation_is_a_share_of_the_peak_or_none(
    monkeypatch: pytest.MonkeyPatch, name: str, per_token: int | None, expected: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)  # there is no GPU here
    found = flops.utilisation(
        20_000, flops_per_token=per_token, device=torch.device("cuda", 0), precision="bf16"
    )
    assert found == (expected and pytest.approx(expected))


def test_cpu_has_no_utilisation() -> None:
    cpu = torch.device("cpu")
    assert flops.utilisation(1.0, flops_per_token=1, device=cpu, precision="fp32") is None
