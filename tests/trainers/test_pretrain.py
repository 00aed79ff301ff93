"""Pretraining in one process, in plain torch."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from worlds import LENGTH, KilledError, Reports, moved, prepare, run

from trainers import checkpoint
from trainers.config import ModelConfig
from trainers.errors import DataError
from trainers.pretrain import DivergedError, PretrainWork

FEW_TOKENS = 4 * 8 * LENGTH
BERT = ModelConfig(
    objective="masked",
    architecture="bert",
    config={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("pretrain"))


def weights(folder: Path) -> dict[str, bytes]:
    return {name: w.tobytes() for name, w in load_file(folder / "model.safetensors").items()}


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "pretraining.json").read_text())
    return found


def test_loss_falls_and_the_validation_loss_is_told(work: PretrainWork, tmp_path: Path) -> None:
    reports = run(moved(work, tmp_path, evaluation={"every_steps": 4}), Reports())
    assert sorted(reports.losses) == list(range(1, 21))
    assert reports.losses[20] < reports.losses[1] - 0.3
    history = facts(tmp_path / "output")["history"]
    evaluated = [point["validation_loss"] for point in history if "validation_loss" in point]
    assert len(evaluated) == 5
    assert evaluated[-1] < evaluated[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_training_equals_an_uninterrupted_one_to_the_last_bit(
    work: PretrainWork, tmp_path: Path, optimizer: str
) -> None:
    model = work.model.model_copy(
        update={"config": {**work.model.config, "attention_dropout": 0.2}}
    )
    work = replace(work, model=model)
    whole = moved(work, tmp_path / "whole", optimizer=optimizer)
    expected = run(whole, Reports())
    cut = moved(work, tmp_path / "cut", optimizer=optimizer)
    with pytest.raises(KilledError):
        run(cut, Reports(kill_after=12))
    rest = moved(work, tmp_path / "rest", optimizer=optimizer)
    resumed = run(replace(rest, earlier_checkpoints=(cut.checkpoints,)), Reports())
    assert sorted(resumed.losses) == list(range(11, 21))
    assert {step: expected.losses[step] for step in resumed.losses} == resumed.losses
    assert weights(rest.output) == weights(whole.output)
    same = ("samples", "samples_digest", "history")
    assert [facts(rest.output)[k] for k in same] == [facts(whole.output)[k] for k in same]


def test_damaged_checkpoint_costs_the_steps_since_the_one_before(
    work: PretrainWork, tmp_path: Path
) -> None:
    cut = moved(work, tmp_path / "cut")
    with pytest.raises(KilledError):
        run(cut, Reports(kill_after=12))
    state = checkpoint.directory_of(cut.checkpoints, 10) / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    rest = replace(moved(work, tmp_path / "rest"), earlier_checkpoints=(cut.checkpoints,))
    assert min(run(rest, Reports()).losses) == 6


def test_only_as_many_checkpoints_as_stated_are_kept(work: PretrainWork, tmp_path: Path) -> None:
    run(moved(work, tmp_path, checkpoint={"every_steps": 3, "keep": 2}), Reports())
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000000015", "step-000000018"]


def test_masked_objective_trains_a_bidirectional_model(work: PretrainWork, tmp_path: Path) -> None:
    reports = run(replace(moved(work, tmp_path), model=BERT), Reports())
    assert reports.losses[20] < reports.losses[1] - 0.3


def test_masked_training_resumes_to_the_last_bit(work: PretrainWork, tmp_path: Path) -> None:
    work = replace(work, model=BERT)
    whole, cut, rest = (moved(work, tmp_path / name) for name in ("whole", "cut", "rest"))
    run(whole, Reports())
    with pytest.raises(KilledError):
        run(cut, Reports(kill_after=12))
    run(replace(rest, earlier_checkpoints=(cut.checkpoints,)), Reports())
    assert weights(rest.output) == weights(whole.output)
    assert facts(rest.output)["history"] == facts(whole.output)["history"]


def test_samples_of_a_training_are_those_of_its_seed(work: PretrainWork, tmp_path: Path) -> None:
    found = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        config = moved(work, tmp_path / name, seed=seed, tokens=FEW_TOKENS)
        run(config, Reports())
        found.append((weights(config.output), facts(config.output)["samples_digest"]))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


def test_micro_batches_change_no_result(work: PretrainWork, tmp_path: Path) -> None:
    one = moved(work, tmp_path / "a", tokens=FEW_TOKENS)
    other = moved(work, tmp_path / "b", tokens=FEW_TOKENS)
    whole = run(one, Reports(), micro_batch_size=8)
    parts = run(other, Reports(), micro_batch_size=4)
    assert whole.losses == pytest.approx(parts.losses, abs=1e-5)


def test_packed_documents_are_learnt_from_apart(tmp_path: Path) -> None:
    work = prepare(tmp_path / "world", "best_fit")
    settings = {"packing": "best_fit", "evaluation": {"every_steps": 2}}
    whole = run(moved(work, tmp_path / "a", **settings), Reports(), micro_batch_size=8)
    parts = run(moved(work, tmp_path / "b", **settings), Reports(), micro_batch_size=1)
    assert whole.losses[20] < whole.losses[1] - 0.3
    assert whole.losses == pytest.approx(parts.losses, abs=1e-4)
    history = facts(tmp_path / "a" / "output")["history"]
    evaluated = [point["validation_loss"] for point in history if "validation_loss" in point]
    assert evaluated[-1] < evaluated[0]
    # What is reported is the mean over predicted tokens: none of them is easier than a guess.
    assert whole.losses[1] == pytest.approx(np.log(300), abs=0.3)
    assert evaluated[0] == pytest.approx(np.log(300), abs=0.5)


def test_packed_documents_of_the_masked_objective_are_learnt_from_apart(tmp_path: Path) -> None:
    work = replace(prepare(tmp_path / "world", "best_fit"), model=BERT)
    reports = run(moved(work, tmp_path / "a", packing="best_fit"), Reports())
    assert reports.losses[1] == pytest.approx(np.log(300), abs=0.5)
    assert reports.losses[20] < reports.losses[1] - 0.2


def test_family_that_lets_documents_attend_to_others_is_refused(tmp_path: Path) -> None:
    config = {"hidden_size": 32, "n_layer": 1, "n_head": 2}
    bloom = ModelConfig(architecture="bloom", config=config)
    work = replace(prepare(tmp_path / "world", "best_fit"), model=bloom)
    with pytest.raises(DataError, match=r"bloom .* set pretrain\.packing: concat"):
        run(moved(work, tmp_path / "a", packing="best_fit"), Reports())


def test_tokens_of_another_tokenizer_are_refused(work: PretrainWork, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(work.tokenizer, other)
    with (other / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DataError, match=r"made by another tokenizer .* --force tokens"):
        run(replace(moved(work, tmp_path), tokenizer=other), Reports())


def test_tokens_of_another_shape_are_refused(work: PretrainWork, tmp_path: Path) -> None:
    for name, value in [("packing", "best_fit"), ("sequence_length", 2 * LENGTH)]:
        other = moved(work, tmp_path / name, **{name: value})
        with pytest.raises(DataError, match=rf"the tokens have {name} .* pretrain\.{name} is"):
            run(other, Reports())


def test_weights_of_sources_change_what_is_read(work: PretrainWork, tmp_path: Path) -> None:
    found = []
    for weight in (1.0, 0.5):
        config = moved(work, tmp_path / str(weight), tokens=FEW_TOKENS)
        run(replace(config, weights=(weight,)), Reports())
        found.append(facts(config.output)["samples_digest"])
    assert found[0] != found[1]


def test_waiting_for_data_is_told(work: PretrainWork, tmp_path: Path) -> None:
    def slow(file: str) -> Path:
        time.sleep(0.3)
        return work.tokens(file)

    config = moved(work, tmp_path, tokens=FEW_TOKENS)
    run(replace(config, tokens=slow), Reports())
    told = facts(config.output)
    assert 0.2 < told["data_s"] <= told["training_s"]


def test_loss_that_is_no_number_ends_the_training_with_a_way_out(
    work: PretrainWork, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"lower pretrain\.learning_rate"):
        run(moved(work, tmp_path, learning_rate=1e30), Reports())
    assert not (tmp_path / "output").exists()
