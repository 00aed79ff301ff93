"""A pipeline that goes on from an existing model."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_classification, write_pipeline

from workflows.config import ConfigError, load_config
from workflows.outside import inspect
from workflows.pipeline import build_steps

EXAMPLE = Path(__file__).parents[2] / "examples" / "continued.yaml"


def continued(pipeline: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The tiny pipeline, going on from `base` with its tokenizer."""
    rest = {name: section for name, section in pipeline.items() if name != "tokenizer"}
    return {**rest, "model": {"from": "base"}, **changes}


def test_tokenizer_is_that_of_the_model_when_none_is_stated(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    config = load_config(write_pipeline(tmp_path, continued(pipeline)))
    assert config.tokenizer.from_ == "base"
    stated = continued(pipeline, tokenizer={"from": "elsewhere"})
    assert load_config(write_pipeline(tmp_path, stated)).tokenizer.from_ == "elsewhere"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"tokenizer": {"train": "bpe", "vocab_size": 512}},
            "train: bpe makes tokens that the model of model.from (base) does not know; drop",
        ),
        ({"model": {"architecture": "llama"}}, "tokenizer: is required"),
    ],
)
def test_tokenizer_that_does_not_go_with_the_model_is_refused(
    tmp_path: Path, pipeline: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_pipeline(tmp_path, continued(pipeline, **changes)))
    assert expected in str(caught.value)


def test_whole_words_of_the_causal_objective_are_refused(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    with pytest.raises(ConfigError, match=r"whole_words goes with model\.objective: masked"):
        load_config(path, ["pretrain.whole_words=true"])
    masked = ["pretrain.whole_words=true", "model.objective=masked", "model.architecture=bert"]
    assert load_config(path, masked).pretrain.whole_words


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.activation_checkpointing=true",
        "pretrain.compile=true",
        "pretrain.attention=eager",
    ],
)
def test_options_of_speed_and_memory_are_no_part_of_an_identity(
    tmp_path: Path, pipeline: dict[str, Any], override: str
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    plain, changed = load_config(path), load_config(path, [override])
    assert plain != changed
    first, second = (build_steps(config, inspect(config, tmp_path)) for config in (plain, changed))
    assert [s.fingerprint for s in first] == [s.fingerprint for s in second]


def test_example_plans_with_the_files_it_names(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    path = tmp_path / "examples" / EXAMPLE.name
    path.write_bytes(EXAMPLE.read_bytes())
    config = load_config(path)
    base = (path.parent / str(config.model.from_)).resolve()
    demo = tmp_path / "data" / "demo"
    demo.mkdir(parents=True)
    base.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (base / name).write_text("{}", encoding="utf-8")
    (demo / "tweets.jsonl").write_text('{"text": "a tweet"}\n', encoding="utf-8")
    write_classification(demo / "sentiment.csv")
    outside = inspect(config, path.parent)
    assert {Path(file).resolve() for file in outside.model} == {base}
    steps = build_steps(config, outside)
    assert {step.kind for step in steps} >= {"tokenizer", "pretrain", "tune", "final"}
    assert "tokenizer" not in yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
