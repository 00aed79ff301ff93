import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS
from transformers import PreTrainedTokenizerFast

from trainers import model, tokenizer
from trainers.config import ModelConfig, TokenizerConfig
from trainers.pretrain_config import Precision, ZeroConfig
from trainers.sizes import (
    MemoryEstimate,
    NetworkSize,
    bucket_elements,
    memory_per_rank,
    network_size,
    what_would_fit,
)

SEQUENCE_LENGTH = 32

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SMALL: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "qwen2": {**DECODER, "num_key_value_heads": 4},
    "qwen3": {**DECODER, "num_key_value_heads": 4, "head_dim": 8},
    "mistral": {**DECODER, "num_key_value_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "bert": DECODER,
    "roberta": {**DECODER, "max_position_embeddings": 40},
}
ROTARY = ("llama", "qwen2", "qwen3", "mistral")


def config_of(architecture: str, settings: dict[str, Any], objective: str = "") -> ModelConfig:
    usual = "masked" if architecture in ("bert", "roberta") else "causal"
    return ModelConfig(
        objective=objective or usual,  # type: ignore[arg-type]
        architecture=architecture,
        config=settings,
    )


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    config = TokenizerConfig(train="bpe", vocab_size=300)
    return tokenizer.build(config, Path(), [" ".join(WORDS[:500])], SEQUENCE_LENGTH)


def built_size(config: ModelConfig, words: PreTrainedTokenizerFast) -> NetworkSize:
    with torch.device("meta"):
        built = model.for_pretraining(config, Path(), words, SEQUENCE_LENGTH, seed=0)
    table, head = built.get_input_embeddings().weight, built.get_output_embeddings().weight
    parameters = sum(parameter.numel() for parameter in built.parameters())
    return NetworkSize(parameters, table.numel(), is_tied=head is table)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        *((name, {}) for name in SMALL),
        *((name, {"tie_word_embeddings": tied}) for name in SMALL for tied in (True, False)),
        *((name, {"num_key_value_heads": 2}) for name in ROTARY),
        *((name, {"num_key_value_heads": 2, "head_dim": 16}) for name in ROTARY),
        *((name, {"attention_bias": True, "mlp_bias": True}) for name in ROTARY),
        *((name, {"max_position_embeddings": 40}) for name in SMALL),
        ("llama", {"num_key_value_heads": None, "head_dim": None}),
        ("qwen2", {"num_attention_heads": 5}),
        ("mistral", {"head_dim": None}),
        ("gpt2", {"n_inner": 80}),
        ("gpt2", {"n_inner": None}),
        ("gpt2", {"n_positions": 64}),
        ("gpt2", {"hidden_size": 32, "num_hidden_layers": 3}),
        ("bert", {"type_vocab_size": 1}),
        ("roberta", {"type_vocab_size": 1}),
    ],
)
def test_count_is_that_of_the_network_that_is_trained(
    architecture: str, changes: dict[str, Any], words: PreTrainedTokenizerFast
) -> None:
    config = config_of(architecture, {**SMALL[architecture], **changes})
    assert network_size(config, len(words), SEQUENCE_LENGTH) == built_size(config, words)


def test_positions_that_the_padding_token_adds_are_not_guessed() -> None:
    assert network_size(config_of("roberta", DECODER), 300, SEQUENCE_LENGTH) is None


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_encoder_with_a_causal_head_is_counted(
    architecture: str, words: PreTrainedTokenizerFast
) -> None:
    config = config_of(architecture, {**SMALL[architecture], "is_decoder": True}, "causal")
    assert network_size(config, len(words), SEQUENCE_LENGTH) == built_size(config, words)


@pytest.mark.parametrize(
    ("architecture", "settings", "vocab_size", "positions", "expected"),
    [
        ("gpt2", {"n_embd": 768, "n_layer": 12}, 50257, 1024, 124_439_808),
        (
            "bert",
            {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
            30522,
            512,
            109_514_298,
        ),
        (
            "llama",
            {
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
            32000,
            4096,
            6_738_415_616,
        ),
        (
            "mistral",
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
            },
            32000,
            32768,
            7_241_732_096,
        ),
    ],
)
def test_published_models_have_their_published_size(
    architecture: str, settings: dict[str, Any], vocab_size: int, positions: int, expected: int
) -> None:
    found = network_size(config_of(architecture, settings), vocab_size, positions)
    assert found is not None
    assert found.parameters == expected


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [
        *((name, size) for name, sizes in SMALL.items() for size in sizes if "head" not in size),
        *((name, "num_attention_heads") for name in ROTARY),
        *((name, "num_key_value_heads") for name in ("qwen2", "qwen3", "mistral")),
        ("qwen3", "head_dim"),
    ],
)
def test_size_left_to_transformers_leaves_the_count_unknown(
    architecture: str, missing: str
) -> None:
    settings = {name: size for name, size in SMALL[architecture].items() if name != missing}
    assert network_size(config_of(architecture, settings), 300, SEQUENCE_LENGTH) is None


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(from_="folder"),
        config_of("opt", DECODER),
        config_of("llama", DECODER, "masked"),
        config_of("gpt2", SMALL["gpt2"], "masked"),
        config_of("gpt2", {**SMALL["gpt2"], "add_cross_attention": True}),
        config_of("gpt2", {**SMALL["gpt2"], "n_inner": "80"}),
        config_of("gpt2", {**SMALL["gpt2"], "hidden_size": 64}),
        config_of("gpt2", {**SMALL["gpt2"], "n_positions": 64, "max_position_embeddings": 40}),
        config_of("llama", {**DECODER, "hidden_size": "32"}),
        config_of("llama", {**DECODER, "num_hidden_layers": True}),
    ],
    ids=str,
)
def test_what_the_file_does_not_tell_is_unknown(config: ModelConfig) -> None:
    assert network_size(config, 300, SEQUENCE_LENGTH) is None


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_memory_is_that_of_the_papers_first_figure(stage: int, gigabytes: float) -> None:
    """arXiv:1910.02054, figure 1: 7.5 B parameters, 64 ranks, mixed precision."""
    memory = estimate(7_500_000_000, {"stage": stage}, ranks=64)
    assert round((memory.total - memory.buffers) / 1e9, 1) == gigabytes


@pytest.mark.parametrize(
    ("stage", "ranks", "gigabytes"),
    [(1, 4, 52.5), (1, 16, 35.6), (2, 4, 41.3), (2, 256, 15.4), (3, 16, 7.5)],
)
def test_memory_is_that_of_the_papers_first_table(stage: int, ranks: int, gigabytes: float) -> None:
    memory = estimate(7_500_000_000, {"stage": stage}, ranks=ranks)
    assert (memory.total - memory.buffers) / 1e9 == pytest.approx(gigabytes, rel=0.002)


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 0}, (4000, 4000, 8000, 0)),
        ({"stage": 1}, (4000, 4000, 6000, 0)),
        ({"stage": 2}, (4000, 2000, 6000, 0)),
        ({"stage": 3}, (2000, 2000, 6000, 0)),
        ({"stage": 1, "offload_optimizer": "cpu"}, (4000, 0, 0, 14_000)),
        ({"stage": 3, "offload_optimizer": "cpu"}, (2000, 0, 0, 8000)),
        ({"stage": 3, "offload_parameters": "cpu"}, (0, 2000, 6000, 2000)),
    ],
)
def test_stages_from_1_keep_a_copy_of_fp32_weights(
    zero: dict[str, Any], expected: tuple[int, ...]
) -> None:
    memory = estimate(1000, zero, ranks=2, precision="fp32")
    assert (memory.weights, memory.gradients, memory.optimizer, memory.host) == expected


def test_a_small_model_is_sent_whole_and_a_large_one_in_sixteen_parts() -> None:
    found = [bucket_elements(size) for size in (1_000_000, 20_000_000, 1_600_000_000, 10**11, 0)]
    assert found == [1_000_000, 1 << 24, 100_000_000, 500_000_000, 500_000_000]


@pytest.mark.parametrize("ranks", [4, 16, 64])
def test_higher_stages_and_more_ranks_need_less_of_a_large_model(ranks: int) -> None:
    stages = [estimate(7_500_000_000, {"stage": stage}, ranks=ranks).total for stage in range(4)]
    assert stages == sorted(stages, reverse=True)
    more = [estimate(7_500_000_000, {"stage": s}, ranks=2 * ranks).total for s in range(4)]
    assert all(one <= other for one, other in zip(more, stages, strict=True))


@pytest.mark.parametrize(
    ("gigabytes", "ways"),
    [
        (200, []),
        (100, ["pretrain.zero.stage: 1", "pretrain.zero: {stage: 3, offload_optimizer: cpu}"]),
        (85, ["pretrain.zero.stage: 3", "pretrain.zero: {stage: 3, offload_optimizer: cpu}"]),
        (20, ["pretrain.zero: {stage: 3, offload_optimizer: cpu}"]),
        (1, []),
    ],
)
def test_advice_is_what_would_fit(gigabytes: float, ways: list[str]) -> None:
    found = what_would_fit(
        NetworkSize(7_500_000_000, 150_000_000, is_tied=False),
        ranks=2,
        precision="bf16",
        zero=ZeroConfig(stage=0),
        device_bytes=gigabytes * 1e9,
        has_host=True,
    )
    assert [way for way in found if "workers" not in way] == ways


def estimate(
    parameters: int, zero: dict[str, Any], *, ranks: int, precision: Precision = "bf16"
) -> MemoryEstimate:
    network = NetworkSize(parameters, table=parameters // 50, is_tied=False)
    return memory_per_rank(
        network, ranks=ranks, precision=precision, zero=ZeroConfig.model_validate(zero)
    )


def test_sizes_load_no_heavy_library() -> None:
    code = "import sys, trainers.sizes; print({'torch', 'transformers'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"
