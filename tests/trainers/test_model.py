from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from trainers import bases, model, task_model, tokenizer
from trainers.config import ModelConfig, TokenizerConfig
from trainers.errors import DataError
from trainers.task_types.base import with_labels

HEAD = AutoModelForSequenceClassification
SMALL: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "tie_word_embeddings": True,
    },
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "bert": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    config = TokenizerConfig(train="bpe", vocab_size=300)
    return tokenizer.build(config, Path(), [" ".join(WORDS[:500])], 32)


def build(
    words: PreTrainedTokenizerFast, architecture: str, **changes: Any
) -> model.PreTrainedModel:
    objective = "masked" if architecture == "bert" else "causal"
    config = ModelConfig(
        objective=objective,  # type: ignore[arg-type]
        architecture=architecture,
        config={**SMALL.get(architecture, {}), **changes},
    )
    return model.for_pretraining(config, Path(), words, 32, seed=0)


@pytest.mark.parametrize("architecture", SMALL)
def test_exported_model_loads_whole(
    words: PreTrainedTokenizerFast, architecture: str, tmp_path: Path
) -> None:
    built = build(words, architecture)
    weights = dict(built.named_parameters())
    model.export(tmp_path, built, weights, words)
    head = AutoModelForMaskedLM if architecture == "bert" else AutoModelForCausalLM
    loaded, report = head.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.tensor([[3, 50, 200, 7]])
    assert torch.equal(loaded(input_ids=ids).logits, built.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("architecture", SMALL)
@pytest.mark.parametrize("head", [HEAD, AutoModelForTokenClassification])
def test_task_model_has_the_weights_of_its_base_and_a_head_of_its_own(
    words: PreTrainedTokenizerFast, architecture: str, head: Any, tmp_path: Path
) -> None:
    built = build(words, architecture)
    model.export(tmp_path, built, dict(built.named_parameters()), words)
    network, weights = bases.weights_of(tmp_path)
    network = with_labels(network, ["a", "b", "c"], None)

    def backbone(seed: int, base: task_model.Weights | None) -> dict[str, np.ndarray[Any, Any]]:
        tuned = task_model.build(network, base, head, dropout=0.0, seed=seed)
        assert tuned.config.id2label == {0: "a", 1: "b", 2: "c"}
        return {name: tensor.numpy() for name, tensor in tuned.state_dict().items()}

    first, second = backbone(0, weights), backbone(1, weights)
    shared = [name for name in first if name in weights]
    heads = [name for name in first if name not in weights and name.endswith("weight")]
    assert len(shared) > 5
    assert heads
    assert all(np.array_equal(first[name], weights[name]) for name in shared)
    assert all(not np.array_equal(first[name], second[name]) for name in heads)
    scratch = backbone(5, None)
    matrices = [name for name in shared if first[name].ndim == 2]
    assert not any(np.array_equal(scratch[name], first[name]) for name in matrices)


def test_dropout_reaches_every_kind_the_family_has(words: PreTrainedTokenizerFast) -> None:
    network = with_labels(build(words, "bert").config.to_dict(), ["a", "b"], None)
    tuned = task_model.build(network, None, HEAD, dropout=0.25, seed=0)
    found = {module.p for module in tuned.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {0.25}


def test_base_without_the_layers_of_the_model_is_refused(words: PreTrainedTokenizerFast) -> None:
    network = with_labels(build(words, "llama").config.to_dict(), ["a", "b"], None)
    with pytest.raises(DataError, match="the base lacks"):
        task_model.build(network, {}, HEAD, dropout=0.0, seed=0)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("lama", {}), ("llama", {"hidden_size": 15, "num_attention_heads": "x"})],
)
def test_configuration_that_describes_no_model_is_refused(
    words: PreTrainedTokenizerFast, architecture: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=f"model: {architecture}"):
        build(words, architecture, **changes)


def test_causal_objective_is_refused_for_a_network_that_sees_the_next_token(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = ModelConfig(architecture="bert", config=SMALL["bert"])
    with pytest.raises(DataError, match="bert sees the tokens that it is to predict"):
        model.for_pretraining(config, tmp_path, words, 16, seed=0)
    decoder = ModelConfig(architecture="bert", config=SMALL["bert"] | {"is_decoder": True})
    built = model.for_pretraining(decoder, tmp_path, words, 16, seed=0).eval()
    ids = torch.arange(8)[None]
    others = ids.clone()
    others[0, -1] = 0
    with torch.no_grad():
        one, other = (built(input_ids=row).logits[:, :-1] for row in (ids, others))
    assert torch.equal(one, other)


def test_continued_pretraining_starts_from_the_weights_that_are_there(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    built = build(words, "llama")
    model.export(tmp_path / "base", built, dict(built.named_parameters()), words)
    config = ModelConfig.model_validate({"from": "base"})
    again = model.for_pretraining(config, tmp_path, words, 32, seed=9)
    pairs = zip(built.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_model_with_fewer_tokens_than_the_tokenizer_is_refused(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    built = build(words, "llama")
    model.export(tmp_path / "base", built, dict(built.named_parameters()), words)
    larger = tokenizer.build(
        TokenizerConfig(train="bpe", vocab_size=320), Path(), [" ".join(WORDS[:500])], 32
    )
    config = ModelConfig.model_validate({"from": "base"})
    with pytest.raises(
        DataError, match=r"vocabulary \(300\) is smaller than the tokenizer's \(320\)"
    ):
        model.for_pretraining(config, tmp_path, larger, 32, seed=0)


def test_sequences_longer_than_the_positions_of_a_loaded_model_are_refused(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    built = build(words, "llama")
    model.export(tmp_path / "base", built, dict(built.named_parameters()), words)
    config = ModelConfig.model_validate({"from": "base"})
    with pytest.raises(DataError, match="33 is longer than the model's 32 positions"):
        model.for_pretraining(config, tmp_path, words, 33, seed=0)


@pytest.mark.parametrize(("architecture", "expected"), [("llama", True), ("bert", False)])
def test_direction_of_reading_follows_from_the_family(
    words: PreTrainedTokenizerFast, architecture: str, expected: bool
) -> None:
    assert task_model.reads_left_to_right(build(words, architecture).config.to_dict()) is expected
