"""A head above features that were computed once, and the same head above the frozen base."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_finetune import GOOD, ONE, make_task
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from worlds import trained_base

from trainers import features, task_inputs, tokenizer
from trainers.features import Pooling
from trainers.finetune import FineTuning
from trainers.task_inputs import TaskInputs

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "albert": {"embedding_size": 32},
    "roberta": {"max_position_embeddings": 130},
    "modernbert": {"global_attn_every_n_layers": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_MOST_ROWS", 25)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_base(tmp_path_factory.mktemp("base"))


def base_of(family: str, trained: Path, folder: Path) -> Path:
    """A base of random weights with the tokenizer of another."""
    words: PreTrainedTokenizerFast = tokenizer.load(trained)
    settings = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        **FAMILIES[family],
    }
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(family, **settings)).save_pretrained(str(folder))
    words.save_pretrained(str(folder))
    return folder


def banked(base: Path, data: Path, inputs: TaskInputs, folder: Path) -> TaskInputs:
    """The same inputs with features, in many small files."""
    pooling = features.pooling_of(inputs)
    assert pooling is not None
    works = features.works(inputs, pooling, base, data, folder, workers=2)
    assert len(works) == 2
    for work in works:
        features.compute(work)
    features.write_index(folder, pooling, works)
    return replace(inputs, features=features.opened(folder.joinpath))


def trial(inputs: TaskInputs, **changes: Any) -> tuple[FineTuning, list[dict[str, float]]]:
    slot = FineTuning(inputs)
    slot.start({**GOOD, "method": "head", "dropout": 0.2, **changes})
    history = []
    while not slot.is_finished:
        history.append(slot.step())
    return slot, history


def assert_the_same(inputs: TaskInputs, with_features: TaskInputs) -> None:
    slot, history = trial(inputs)
    quick, found = trial(with_features)
    for one, other in zip(history, found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        # Random bases say nearly the same of all texts: rounding may rank two of them otherwise.
        assert one == pytest.approx(other, abs=1e-3)
    own = slot.weights
    assert 0 < len(quick.weights) < len(own)
    for name, weight in quick.weights.items():
        assert torch.allclose(weight, own[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("family", "kind", "pooling"),
    [
        *((family, "classification", "first") for family in ("bert", "roberta", "distilbert")),
        ("electra", "classification", "first"),
        ("modernbert", "classification", "first"),
        ("llama", "classification", "last"),
        ("gpt2", "classification", "last"),
        *((family, "token_classification", "tokens") for family in ("bert", "llama")),
    ],
)
def test_a_head_learns_from_features_what_it_learns_above_the_base(
    trained: Path, tmp_path: Path, family: str, kind: str, pooling: Pooling
) -> None:
    (tmp_path / "base").mkdir()
    base = base_of(family, trained, tmp_path / "base")
    task, data = make_task(tmp_path, kind)
    inputs = task_inputs.task_inputs(task, base, data, execution=ONE)
    assert features.pooling_of(inputs) == pooling
    assert_the_same(inputs, banked(base, data, inputs, tmp_path))


def test_a_mean_is_found_to_be_one(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = base_of("modernbert", trained, tmp_path / "base")
    task, data = make_task(tmp_path, "classification")
    inputs = task_inputs.task_inputs(task, base, data, execution=ONE)
    by_mean = replace(inputs, network={**inputs.network, "classifier_pooling": "mean"})
    assert features.pooling_of(by_mean) == "mean"


def test_a_head_that_reads_something_else_has_no_features(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = base_of("albert", trained, tmp_path / "base")  # whose pooler is of another form
    task, data = make_task(tmp_path, "classification")
    inputs = task_inputs.task_inputs(task, base, data, execution=ONE)
    assert features.pooling_of(inputs) is None


def test_files_are_small_and_hold_each_row_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = make_task(tmp_path, "classification")
    rows = task_inputs.task_inputs(task, trained, data, execution=ONE).train
    many = replace(rows, ids=[np.arange(40)] * 5000, labels=[])
    pooled: Pooling = "first"
    for pooling, most_rows, most in ((pooled, 4096, 4096), ("tokens", 4096, (1 << 16) // 40)):
        monkeypatch.setattr(features, "_MOST_ROWS", most_rows)
        parts = list(features.parts_of(many, pooling))
        assert [row for part in parts for row in part] == list(range(5000))
        assert max(map(len, parts)) == most


def test_the_size_is_known_before(trained: Path, tmp_path: Path) -> None:
    task, data = make_task(tmp_path, "token_classification")
    inputs = task_inputs.task_inputs(task, trained, data, execution=ONE)
    sizes = features.bytes_of(inputs, "tokens")
    banked(trained, data, inputs, tmp_path)
    for split, size in sizes.items():
        files = [path for path in tmp_path.glob(f"{split}-*.npy") if ".ends" not in path.name]
        assert files
        written = [np.load(path) for path in files]
        assert sum(part.nbytes for part in written) == size


def test_what_changes_texts_is_trained_above_the_base(trained: Path, tmp_path: Path) -> None:
    task, data = make_task(tmp_path, "classification")
    inputs = task_inputs.task_inputs(task, trained, data, execution=ONE)
    with_features = banked(trained, data, inputs, tmp_path)
    for changes in ({"prefix_loss": 0.5}, {"method": "full"}, {"method": "lora"}):
        one, history = trial(inputs, epochs=1, **changes)
        other, found = trial(with_features, epochs=1, **changes)
        assert history == found
        assert one.weights.keys() == other.weights.keys()
