"""Pipelines without pretraining: the base is there already."""

from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline

from workflows import outside
from workflows.config import ConfigError, PipelineConfig, Pretraining, load_config
from workflows.models import ModelStore, ModelStoreError, Version
from workflows.pipeline import build_steps
from workflows.steps import Step
from workflows.storage import Storage


def given(pipeline: dict[str, Any], base: dict[str, str]) -> dict[str, Any]:
    """The tiny pipeline without pretraining."""
    rest = {name: of for name, of in pipeline.items() if name not in Pretraining._fields}
    cluster = {name: of for name, of in rest["cluster"].items() if name != "pretrain"}
    return {**rest, "base": base, "cluster": cluster}


def steps_of(config: PipelineConfig, folder: Path) -> dict[str, Step]:
    return {step.name: step for step in build_steps(config, outside.inspect(config, folder))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "base"
    found.mkdir()
    (found / "config.json").write_text("{}", encoding="utf-8")
    return found


def add(store: ModelStore, folder: Path, content: str) -> Version:
    (folder / "model.safetensors").write_text(content, encoding="utf-8")
    return store.add("tiny.tone", folder, fingerprint=content, attempt=content, task={}, scores={})


def test_one_step_stands_where_pretraining_stood(
    tmp_path: Path, pipeline: dict[str, Any], folder: Path
) -> None:
    config = load_config(write_pipeline(tmp_path, given(pipeline, {"from": "base"})))
    steps = steps_of(config, tmp_path)
    assert {step.kind for step in steps.values()} == {
        *("base", "data", "tune", "final", "promote", "track", "report")
    }
    assert steps["tone.tune"].inputs["base"].name == "base"

    before = steps["base"].fingerprint
    (folder / "config.json").write_text("{ }", encoding="utf-8")
    assert steps_of(config, tmp_path)["base"].fingerprint != before
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json there; give a folder saved by"):
        steps_of(config, tmp_path)


def test_an_alias_of_the_store_is_the_version_it_means_when_planned(
    tmp_path: Path, pipeline: dict[str, Any], folder: Path
) -> None:
    config = load_config(write_pipeline(tmp_path, given(pipeline, {"store": "tiny.tone@champion"})))
    with pytest.raises(ModelStoreError, match=r"no model 'tiny\.tone'"):
        steps_of(config, tmp_path)
    store = ModelStore(Storage.at(config.storage))
    first, second = (add(store, folder, name) for name in ("one", "two"))
    store.promote(first, expected=None, reason="first", run="run")
    found = steps_of(config, tmp_path)["base"]
    assert found.spec.base.store == "tiny.tone@1"
    assert steps_of(config, tmp_path)["base"].fingerprint == found.fingerprint
    store.promote(second, expected=first, reason="better", run="run")
    assert steps_of(config, tmp_path)["base"].fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base": {}}, "base: give either from: FOLDER or store: NAME@VERSION, and not both"),
        ({"base": None}, "corpus: is required, unless base names a model that is there already"),
        ({"tokenizer": {"from": "base"}}, "tokenizer: does nothing beside base"),
        ({"cluster": {"pretrain": {"workers": 2}}}, "cluster.pretrain: does nothing beside base"),
    ],
)
def test_what_does_not_go_with_a_base_is_refused(
    tmp_path: Path, pipeline: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_pipeline(tmp_path, {**given(pipeline, {"from": "base"}), **changes}))
    assert expected in str(caught.value)
