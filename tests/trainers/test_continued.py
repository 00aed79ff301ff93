"""Continued pretraining goes on where its base ended."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import LLAMA, Reports, moved, prepare, run

from trainers import bases, model, tokenizer
from trainers.config import ModelConfig
from trainers.errors import DataError
from trainers.model import AutoModelForCausalLM

CONFIGS = {
    "llama": ModelConfig(architecture="llama", config=LLAMA),
    "bert": ModelConfig(
        objective="masked",
        architecture="bert",
        config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_continued_pretraining_starts_with_the_loss_of_its_base(
    tmp_path: Path, family: str
) -> None:
    work = replace(prepare(tmp_path / "world"), model=CONFIGS[family])
    base = run(moved(work, tmp_path / "first", learning_rate=1e-2), Reports()).losses
    went_on = ModelConfig.model_validate(
        {"from": "first/output", "objective": CONFIGS[family].objective}
    )
    work = replace(work, model=went_on, base=tmp_path)
    again = run(moved(work, tmp_path / "second", learning_rate=1e-5, seed=1), Reports()).losses
    last = np.mean([base[step] for step in (18, 19, 20)])
    assert base[1] - last > 0.5
    assert np.mean([again[step] for step in (1, 2, 3)]) == pytest.approx(last, abs=0.25)


def test_weights_in_several_files_are_read_whole(tmp_path: Path) -> None:
    work = prepare(tmp_path / "world")
    loaded = tokenizer.load(work.tokenizer)
    built = model.for_pretraining(work.model, work.base, loaded, 16, 0)
    model.export(tmp_path / "whole", built, dict(built.named_parameters()), loaded)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    _, expected = bases.weights_of(tmp_path / "whole")
    _, found = bases.weights_of(tmp_path / "sharded")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    config = ModelConfig.model_validate({"from": "sharded"})
    again = model.for_pretraining(config, tmp_path, loaded, 16, 0)
    assert np.array_equal(again.lm_head.weight.detach().numpy(), built.lm_head.weight.detach())


def test_a_head_that_the_base_lacks_is_made_from_the_seed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An encoder of sentences, for example, has lost the head that it was pretrained with."""
    work = prepare(tmp_path / "world")
    loaded = tokenizer.load(work.tokenizer)
    built = model.for_pretraining(CONFIGS["bert"], tmp_path, loaded, 16, 0)
    built.base_model.save_pretrained(tmp_path / "encoder")
    config = ModelConfig.model_validate({"from": "encoder", "objective": "masked"})

    def head(seed: int) -> np.ndarray:
        torch.rand(seed + 1)  # whatever was drawn before
        found = model.for_pretraining(config, tmp_path, loaded, 16, seed)
        return found.cls.predictions.transform.dense.weight.detach().numpy()

    assert np.array_equal(head(0), head(0))
    assert not np.array_equal(head(0), head(1))
    assert "the head is new: 6 weights that its files lack, first cls.predictions" in caplog.text


def test_a_base_that_lacks_more_than_a_head_is_refused(tmp_path: Path) -> None:
    work = prepare(tmp_path / "world")
    loaded = tokenizer.load(work.tokenizer)
    built = model.for_pretraining(CONFIGS["bert"], tmp_path, loaded, 16, 0)
    weights = built.state_dict()
    lost = "bert.encoder.layer.0.output.dense.weight"
    kept = {name: weight for name, weight in weights.items() if name != lost}
    built.save_pretrained(tmp_path / "damaged", state_dict=kept)
    config = ModelConfig.model_validate({"from": "damaged", "objective": "masked"})
    with pytest.raises(DataError, match=f"its files lack 1 weights of a bert, first {lost}"):
        model.for_pretraining(config, tmp_path, loaded, 16, 0)
