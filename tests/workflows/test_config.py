from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline

from workflows.config import ConfigError, as_yaml, load_config


def changed(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *parents, last = key.split(".")
    section = data
    for parent in parents:
        section = section[parent]
    section[last] = value
    return data


def error_of(folder: Path, data: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write_pipeline(folder, data), overrides)
    return str(caught.value)


def test_tiny_pipeline_loads(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    config = load_config(write_pipeline(tmp_path, pipeline))
    assert config.pretrain.global_batch_size == 4
    assert config.pretrain.total_steps == 20
    assert config.corpus.sources[0].format == "lines"
    assert config.tasks["tone"].max_epochs == 2


def test_a_configuration_survives_being_written_and_read(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    config = load_config(write_pipeline(tmp_path, pipeline))
    written = tmp_path / "again.yaml"
    written.write_text(as_yaml(config), encoding="utf-8")
    assert load_config(written) == config


def test_null_that_is_not_the_default_survives_too(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    overrides = ["corpus.clean.held_out_ngram=null"]
    config = load_config(write_pipeline(tmp_path, pipeline), overrides)
    assert config.corpus.clean.held_out_ngram is None
    written = tmp_path / "again.yaml"
    written.write_text(as_yaml(config), encoding="utf-8")
    assert load_config(written) == config


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("pretrain.learning_rat", 1, "did you mean 'learning_rate'?"),
        ("tasks.tone.search.space.learning_rat", 1, "did you mean 'learning_rate'?"),
        ("tasks.tone.search.trails", 2, "did you mean 'trials'?"),
        ("pretrain.zero.stage", 5, "Input should be 0, 1, 2 or 3 (got 5)"),
        ("pretrain.global_batch_tokens", 100, "must be a multiple of sequence_length (64)"),
        ("pretrain.tokens", 64, "less than one step's global_batch_tokens"),
        ("model.config.max_position_embeddings", 32, "longer than the model's 32 positions"),
        ("tasks.tone.max_length", 128, "longer than the model's 64 positions"),
        ("tasks.tone.metric", "entity_f1", "does not go with type 'classification'"),
        ("tasks.tone.data.split.test", 0.9, "leave no rows"),
        ("tasks.tone.data.split", {"test": 0.2}, "say where validation rows come from"),
        ("tasks.tone.data.test_path", "test.csv", "say where test rows come from: either"),
        ("tasks.tone.metric", "mse", "does not go with type 'classification'; use accuracy or"),
        ("tasks.tone.type", "regression", "metric 'accuracy' does not go with type 'regression'"),
        ("tasks.tone.data.label_separator", "|", "goes with multi_label: true"),
        ("tasks.places.multi_label", True, "multi_label goes with type: classification"),
        ("tasks.places.class_weights", "balanced", "class_weights goes with type: classification"),
        ("tasks.places.data.text_pair", "b", "text_pair does not go with type: token_class"),
        ("tasks.places.data.split.stratify", True, "stratify goes with type: classification"),
        (
            "tasks.places.search.space.prefix_loss",
            [0.0, 0.3],
            "search.space.prefix_loss does nothing with type token_classification: each word",
        ),
        ("tokenizer.vocab_size", 100, "set at least 259"),
        ("tokenizer.from", "somewhere", "not both"),
        ("corpus.held_out", ["ton"], "did you mean 'tone'?"),
        ("cluster.pretrain.workers", 3, "cannot be shared evenly by 3 workers"),
        (
            "cluster.pretrain.workers",
            {"min": 1, "max": 4},
            "cannot be shared evenly by 3 workers, only by 1, 2, 4;",
        ),
        ("cluster.pretrain.workers", {"min": 1, "mx": 4}, "did you mean 'max'?"),
        ("cluster.pretrain.workers", 0, "cluster.pretrain.workers: Input should be greater"),
        ("cluster.trials", {"workers": 2, "gpus": 0.5}, "need whole GPUs (got gpus: 0.5)"),
        ("cluster.pretrain.micro_batch_size", "all", "cluster.pretrain.micro_batch_size: Input"),
        ("cluster.address", "ray://head:10001", "ray:// (Ray Client) cannot run"),
        ("storage", "ftp://host/prefix", "give a folder or one of s3://, gs://, abfs://"),
        ("steps", {"own": {"uses": "nocolon"}}, "should match pattern"),
        ("corpus.sources", [{"path": "data.xyz"}], "says nothing of the format"),
        ("corpus.sources", [], "at least 1 item"),
        ("tasks.tone.search.space.learning_rate", {"loguniform": [0, 1]}, "above zero"),
        ("tasks.tone.search.space.learning_rate", {"uniform": [2, 1]}, "must be below"),
        ("tasks.tone.search.space.method", ["full", "loro"], "Input should be 'full', 'lora' or"),
        ("tasks.tone.search.space.learning_rate", {"quniform": [0, 1, 0]}, "greater than 0"),
        (
            "tasks.tone.search",
            {"trials": 2, "searcher": "grid", "space": {"learning_rate": {"uniform": [0.1, 1]}}},
            "space.learning_rate is a range: list its values",
        ),
        (
            "tasks.tone.search",
            {"trials": 5, "searcher": "grid", "space": {"learning_rate": [0.1, 1], "epochs": 2}},
            "searcher grid tries all 2 points of the space: set trials",
        ),
        (
            "tasks.tone.search",
            {"trials": 5, "grace_epochs": 2},
            "grace_epochs goes with scheduler: asha or median",
        ),
        ("tasks.tone.search.space.lora_rank", [4], "goes with method: lora; the search tries full"),
        ("tasks.tone.search.space.epochs", 0, "greater than or equal to 1"),
        ("model.config.vocab_size", 7, "follow from the tokenizer"),
        ("name", "Not A Name", "should match pattern"),
    ],
)
def test_bad_value_is_refused_with_its_place_and_a_way_out(
    tmp_path: Path, pipeline: dict[str, Any], key: str, value: Any, expected: str
) -> None:
    message = error_of(tmp_path, changed(pipeline, key, value))
    assert expected in message
    assert message.startswith(f"{tmp_path / 'pipeline.yaml'}:")


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"space": {"gradual_unfreezing": True}}, "tasks.tone: gradual_unfreezing does not go"),
        ({"space": {"prefix_loss": [0.0, 0.3]}}, "tasks.tone: prefix_loss does not go"),
        (
            {"trials": 4, "scheduler": "pbt", "space": {"dropout": [0.0, 0.1], "epochs": 2}},
            "tasks.tone: scheduler: pbt does not go",
        ),
    ],
)
def test_what_ranks_cannot_do_is_refused_with_several_workers_a_trial(
    tmp_path: Path, pipeline: dict[str, Any], search: dict[str, Any], expected: str
) -> None:
    changed(pipeline, "tasks.tone.search", {"trials": 2, **search})
    load_config(write_pipeline(tmp_path, pipeline))
    message = error_of(tmp_path, changed(pipeline, "cluster.trials", {"workers": 2}))
    assert f"{expected} with cluster.trials.workers: 2: " in message


def test_unknown_key_is_named_with_its_line(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    path = write_pipeline(tmp_path, changed(pipeline, "pretrain.sequence_lenght", 64))
    lines = path.read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "sequence_lenght" in text)
    with pytest.raises(ConfigError, match=f"pipeline.yaml:{line}: pretrain.sequence_lenght: "):
        load_config(path)


def test_all_problems_are_told_at_once(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    changed(pipeline, "pretrain.seed", "many")
    message = error_of(tmp_path, changed(pipeline, "tokenizer.vocabulary", 1))
    assert len(message.splitlines()) == 2


def test_missing_key_is_named(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    del pipeline["pretrain"]["tokens"]
    assert "pretrain.tokens: is required" in error_of(tmp_path, pipeline)


def test_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("name: a\npretrain:\n  seed: 1\n  seed: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"yaml:4: seed: this key stands here twice"):
        load_config(path)


def test_override_sets_one_value(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    config = load_config(write_pipeline(tmp_path, pipeline), ["pretrain.seed=7"])
    assert config.pretrain.seed == 7


@pytest.mark.parametrize("override", ["pretrain.seed", "=1", "name.a=1"])
def test_malformed_override_is_refused(
    tmp_path: Path, pipeline: dict[str, Any], override: str
) -> None:
    assert "--set" in error_of(tmp_path, pipeline, override)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
