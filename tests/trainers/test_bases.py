"""Models that are there already, taken in as bases: in every form they are saved in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)
from worlds import prepare

from trainers import bases, licences, task_model, tokenizer
from trainers.errors import DataError
from trainers.task_types.answers import QuestionAnswering
from trainers.task_types.classification import Classification

HEAD = Classification.head
BERT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's folder."""
    return prepare(tmp_path_factory.mktemp("words")).tokenizer


@pytest.fixture
def folder(tmp_path: Path, words: Path) -> Path:
    """Where a model is saved, beside its tokenizer."""
    found = tmp_path / "model"
    shutil.copytree(words, found)
    return found


def taken(folder: Path) -> Path:
    target = folder.with_name("base")
    target.mkdir()
    bases.take_in(folder, target)
    return target


def a_bert(kind: Callable[[BertConfig], Any] = BertModel) -> Any:
    torch.manual_seed(0)
    return kind(BertConfig(**BERT))


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForSequenceClassification])
def test_backbone_is_the_models_and_the_head_is_new(folder: Path, kind: Any) -> None:
    saved = a_bert(kind)
    saved.save_pretrained(folder)
    network, weights = bases.weights_of(taken(folder))
    tuned = task_model.build(network, weights, HEAD, dropout=0.0, seed=1)
    own = dict(tuned.bert.named_parameters())
    backbone = saved if kind is BertModel else saved.bert
    for name, weight in backbone.named_parameters():
        assert torch.equal(weight, own[name]), name
    if kind is BertForSequenceClassification:
        assert not torch.equal(tuned.classifier.weight, saved.classifier.weight)


def test_shards_half_precision_and_pickles_are_read(folder: Path) -> None:
    saved = a_bert(BertForMaskedLM)
    saved.half().save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    _, weights = bases.weights_of(taken(folder))
    name = "bert.encoder.layer.1.output.dense.weight"
    assert np.array_equal(weights[name], saved.state_dict()[name].float().numpy())

    pickled = folder.with_name("pickled")
    shutil.copytree(folder, pickled, ignore=shutil.ignore_patterns("*safetensors*"))
    torch.save(saved.state_dict(), pickled / "pytorch_model.bin")
    target = pickled.with_name("of-pickle")
    target.mkdir()
    bases.take_in(pickled, target)
    assert np.array_equal(bases.weights_of(target)[1][name], weights[name])


def test_a_decoders_head_goes_on_where_the_task_keeps_it(folder: Path) -> None:
    config = GPT2Config(
        vocab_size=512, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False, n_positions=40
    )
    saved = GPT2LMHeadModel(config)
    saved.save_pretrained(folder)
    network, weights = bases.weights_of(taken(folder))
    kept, new = (
        task_model.build(
            network, weights, AutoModelForCausalLM, dropout=0.0, seed=1, keeps_head=keeps
        )
        for keeps in (True, False)
    )
    assert torch.equal(kept.lm_head.weight, saved.lm_head.weight)
    assert not torch.equal(new.lm_head.weight, saved.lm_head.weight)
    without = {name: array for name, array in weights.items() if name != "lm_head.weight"}
    with pytest.raises(DataError, match=r"lacks 1 weights of this model, first lm_head\.weight"):
        task_model.build(
            network, without, AutoModelForCausalLM, dropout=0.0, seed=1, keeps_head=True
        )


def test_weights_that_files_call_otherwise_are_found(folder: Path) -> None:
    saved = a_bert(BertForMaskedLM)
    saved.save_pretrained(folder)
    file = folder / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, weight in load_file(file).items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[name] = weight
    assert any(name.endswith("gamma") for name in renamed)
    save_file(renamed, file, metadata={"format": "pt"})
    network, weights = bases.weights_of(taken(folder))
    task_model.build(network, weights, HEAD, dropout=0.0, seed=1)
    name = "bert.encoder.layer.0.output.LayerNorm.weight"
    assert np.array_equal(weights[name], saved.state_dict()[name].numpy())


def test_experts_that_files_keep_in_pieces_are_found(folder: Path) -> None:
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    saved = MixtralForCausalLM(config)
    saved.save_pretrained(folder)
    network, weights = bases.weights_of(taken(folder))
    tuned = task_model.build(network, weights, HEAD, dropout=0.0, seed=1)
    for name, weight in saved.model.named_parameters():
        assert torch.equal(weight, dict(tuned.model.named_parameters())[name]), name


def test_what_files_lack_is_not_made_up(folder: Path) -> None:
    lose_weights(folder)
    network, weights = bases.weights_of(folder)
    with pytest.raises(DataError, match=r"lacks 1 weights of this model, first bert\.encoder"):
        task_model.build(network, weights, HEAD, dropout=0.0, seed=1)
    a_bert(BertForMaskedLM).save_pretrained(folder)
    once, again = (bases.weights_of(folder)[1] for _ in range(2))
    assert all(np.array_equal(once[name], again[name]) for name in once)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertModel"]  # whose pooler these files lack
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not any("pooler" in name for name in bases.weights_of(folder)[1])


def test_a_family_without_the_types_head_is_refused() -> None:
    gemma = {"model_type": "gemma3_text", "vocab_size": 64, "hidden_size": 16}
    with pytest.raises(DataError, match="no QuestionAnswering for a base of the family gemma3"):
        task_model.require_positions(gemma, QuestionAnswering.head, 8)


def test_texts_longer_than_the_bases_positions_are_refused() -> None:
    bert, roberta = BertConfig(**BERT), RobertaConfig(**BERT, pad_token_id=1)
    task_model.require_positions(bert.to_dict(), HEAD, 40)
    task_model.require_positions(roberta.to_dict(), HEAD, 38)
    with pytest.raises(DataError, match="max_length 41 is longer than the base's 40 positions"):
        task_model.require_positions(bert.to_dict(), HEAD, 41)
    with pytest.raises(DataError, match=r"the base's 38 positions \(the first 2 of its"):
        task_model.require_positions(roberta.to_dict(), HEAD, 39)
    RobertaModel(RobertaConfig(**BERT, pad_token_id=1))(torch.full((1, 38), 7))


def test_tokenizer_without_padding_gets_one(folder: Path) -> None:
    a_bert().save_pretrained(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            facts = json.loads((folder / name).read_text(encoding="utf-8"))
            facts.pop("pad_token", None)
            (folder / name).write_text(json.dumps(facts), encoding="utf-8")
    assert tokenizer.load(folder).pad_token is None
    assert tokenizer.load(taken(folder)).pad_token == tokenizer.END


def save_few_embeddings(folder: Path) -> None:
    BertModel(BertConfig(**{**BERT, "vocab_size": 100})).save_pretrained(folder)


def save_t5(folder: Path) -> None:
    config = T5Config(vocab_size=512, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def lose_weights(folder: Path) -> None:
    a_bert().save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def tear_weights(folder: Path) -> None:
    a_bert().save_pretrained(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def lose_tokenizer(folder: Path) -> None:
    a_bert().save_pretrained(folder)
    (folder / tokenizer.FILE).unlink()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (save_t5, "t5 is an encoder with a decoder"),
        (lose_weights, "lack 1 weights of a bert, first encoder.layer.0.output.dense.weight"),
        (tear_weights, "model: .*"),
        (lose_tokenizer, "holds no tokenizer.json"),
        (save_few_embeddings, "its tokenizer has 300 tokens, its model 100"),
        (lambda folder: None, "model: .*config.json"),
    ],
)
def test_what_makes_no_base_is_refused(
    folder: Path, make: Callable[[Path], None], expected: str
) -> None:
    make(folder)
    with pytest.raises(DataError, match=expected):
        taken(folder)
    assert not list(folder.with_name("base").iterdir())


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ("# A model\n", None),
        ("---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
        ("---\nlicense: [\n---\n", None),
    ],
)
def test_licence_is_what_the_model_card_says(
    tmp_path: Path, card: str | None, licence: str | None
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert licences.of(tmp_path) == licence
