"""Every family learns with its objective and packing, and its export loads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from worlds import LENGTH, Reports, moved, prepare, run

from trainers import model, tokenizer
from trainers.config import ModelConfig, Packing
from trainers.errors import DataError
from trainers.pretrain import PretrainWork

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"objective": "causal", "config": SIZES},
    "gpt2": {"objective": "causal", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2}},
    "qwen3": {"objective": "causal", "config": {**SIZES, "num_key_value_heads": 1, "head_dim": 16}},
    "bert": {"objective": "masked", "config": SIZES},
    "roberta": {"objective": "masked", "config": SIZES},
    "modernbert": {
        "objective": "masked",
        "config": {**SIZES, "local_attention": 8, "global_attn_every_n_layers": 2},
    },
}


def model_config(family: str, **changes: Any) -> ModelConfig:
    settings = FAMILIES[family]
    return ModelConfig.model_validate(
        {
            "architecture": family,
            "objective": settings["objective"],
            "config": {**settings["config"], **changes},
        }
    )


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PretrainWork]:
    return {
        "concat": prepare(tmp_path_factory.mktemp("concat")),
        "best_fit": prepare(tmp_path_factory.mktemp("best_fit"), "best_fit"),
    }


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_learns_and_its_export_loads(
    works: dict[str, PretrainWork], family: str, packing: Packing, tmp_path: Path
) -> None:
    work = replace(works[packing], model=model_config(family))
    losses = run(moved(work, tmp_path, packing=packing, learning_rate=1e-2), Reports()).losses
    assert losses[1] == pytest.approx(np.log(300), abs=0.5)
    assert losses[20] < losses[1] - 0.2
    is_causal = FAMILIES[family]["objective"] == "causal"
    head = AutoModelForCausalLM if is_causal else AutoModelForMaskedLM
    loaded, report = head.from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not any(report.values()), report
    logits = loaded.eval()(input_ids=torch.arange(3, 3 + LENGTH)[None]).logits[0]
    changed = torch.arange(3, 3 + LENGTH)[None]
    changed[0, -1] = 40
    sees_what_follows = not torch.equal(loaded(input_ids=changed).logits[0, 0], logits[0])
    assert sees_what_follows is not is_causal


def build(work: PretrainWork, config: ModelConfig, length: int) -> model.PreTrainedModel:
    return model.for_pretraining(config, work.base, tokenizer.load(work.tokenizer), length, 0)


def test_positions_behind_the_padding_token_come_on_top(works: dict[str, PretrainWork]) -> None:
    work = works["concat"]
    built = build(work, model_config("roberta"), 24)
    first = tokenizer.load(work.tokenizer).pad_token_id + 1
    assert built.config.max_position_embeddings == 24 + first
    built(input_ids=torch.arange(3, 27)[None])  # the last position exists
    assert build(work, model_config("bert"), 24).config.max_position_embeddings == 24


def test_positions_that_are_stated_are_kept_and_the_first_not_counted(
    works: dict[str, PretrainWork],
) -> None:
    work = works["concat"]
    stated = model_config("roberta", max_position_embeddings=26)
    assert build(work, stated, 24).config.max_position_embeddings == 26
    with pytest.raises(
        DataError, match=r"25 is longer than the model's 24 positions \(the first 2 of its max"
    ):
        build(work, stated, 25)


def test_weights_of_a_seed_do_not_depend_on_whether_positions_are_stated(
    works: dict[str, PretrainWork],
) -> None:
    found = [
        build(works["concat"], model_config("roberta", **stated), 24).state_dict()
        for stated in ({}, {"max_position_embeddings": 26})
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
