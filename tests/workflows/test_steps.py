import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline

from workflows.config import load_config
from workflows.outside import inspect
from workflows.pipeline import build_steps
from workflows.steps import Step, canonical


def steps_of(folder: Path, data: dict[str, Any], *overrides: str) -> dict[str, Step]:
    config = load_config(write_pipeline(folder, data), overrides)
    return {step.name: step for step in build_steps(config, inspect(config, folder))}


def changed_steps(folder: Path, data: dict[str, Any], *overrides: str) -> set[str]:
    before, after = steps_of(folder, data), steps_of(folder, data, *overrides)
    return {name for name in before if before[name].fingerprint != after[name].fingerprint}


@pytest.mark.parametrize(
    "override",
    [
        "storage=/tmp/other",
        "cluster.pretrain.workers=4",
        "cluster.pretrain.micro_batch_size=1",
        "cluster.trials.cpus=2",
        "cluster.retry.max_attempts=9",
        "pretrain.checkpoint.every_steps=3",
    ],
)
def test_where_and_how_change_no_fingerprint(
    tmp_path: Path, pipeline: dict[str, Any], override: str
) -> None:
    assert changed_steps(tmp_path, pipeline, override) == set()


def test_another_folder_changes_no_fingerprint(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    here = steps_of(tmp_path, pipeline)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("corpus.txt", "tone.csv", "places.txt"):
        shutil.copy(tmp_path / name, elsewhere / name)
    there = steps_of(elsewhere, pipeline)
    assert {n: s.fingerprint for n, s in here.items()} == {
        n: s.fingerprint for n, s in there.items()
    }


OF_BASE = {"base.losses", "base.promote"}
BASE = {"corpus", "tokenizer", "tokens", "pretrain", *OF_BASE}
TONE = {"tone.tune", "tone.final", "tone.promote"}
PLACES = {"places.tune", "places.final", "places.promote"}
SUMMARY = {"track", "report"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pretrain.learning_rate=0.001", {"pretrain"} | OF_BASE | TONE | PLACES | SUMMARY),
        ("pretrain.seed=3", {"pretrain"} | OF_BASE | TONE | PLACES | SUMMARY),
        ("model.config.num_hidden_layers=1", {"pretrain"} | OF_BASE | TONE | PLACES | SUMMARY),
        ("tokenizer.vocab_size=600", BASE - {"corpus"} | TONE | PLACES | SUMMARY),
        ("corpus.validation_fraction=0.2", BASE | TONE | PLACES | SUMMARY),
        ("pretrain.promote.documents=9", OF_BASE | SUMMARY),
        ("pretrain.promote.confidence=0.9", {"base.promote"} | SUMMARY),
        ("tasks.tone.search.trials=3", TONE | SUMMARY),
        ("tasks.places.final.seeds=2", {"places.final", "places.promote"} | SUMMARY),
        ("tasks.tone.promote.min_improvement=0.1", {"tone.promote"} | SUMMARY),
        ("tasks.places.data.split.seed=1", {"places.data"} | PLACES | SUMMARY),
        (
            "tasks.tone.data.split.seed=1",  # held out of the corpus: another test split
            {"tone.data"} | BASE | TONE | PLACES | SUMMARY,
        ),
    ],
)
def test_change_of_what_is_computed_changes_that_step_and_its_descendants(
    tmp_path: Path, pipeline: dict[str, Any], override: str, expected: set[str]
) -> None:
    assert changed_steps(tmp_path, pipeline, override) == expected


def test_changed_data_changes_what_reads_it(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    before = steps_of(tmp_path, pipeline)
    with (tmp_path / "corpus.txt").open("a", encoding="utf-8") as file:
        file.write("\none more document")
    after = steps_of(tmp_path, pipeline)
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert changed == BASE | TONE | PLACES | SUMMARY


def test_steps_stand_behind_their_inputs(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    seen: set[str] = set()
    for name, step in steps_of(tmp_path, pipeline).items():
        assert {other.name for other in step.inputs.values()} <= seen
        seen.add(name)


def test_pretraining_depends_on_no_search(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    steps = steps_of(tmp_path, pipeline)

    def ancestors(name: str) -> set[str]:
        direct = {other.name for other in steps[name].inputs.values()}
        return direct.union(*map(ancestors, direct))

    assert ancestors("pretrain") == {
        "tone.data",
        "corpus",
        "tokenizer",
        "tokens",
    }


def test_canonical_text_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": [1.5, None, True]}) == canonical(
        {"a": [1.5, None, True], "b": 1}
    )


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", {1: "a"}, Path("x"), [lambda: 0]])
def test_canonical_refuses_what_it_does_not_know(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_refuses_numbers_that_are_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be part of an identity"):
        canonical([value])
