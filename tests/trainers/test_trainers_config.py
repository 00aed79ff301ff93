from typing import Any

import pytest
from pydantic import ValidationError

from trainers.config import (
    CorpusConfig,
    ModelConfig,
    Schema,
    SourceConfig,
    TokenizerConfig,
    format_of,
)
from trainers.pretrain_config import PretrainConfig
from trainers.task_config import Hyperparameters, SplitConfig, TaskConfig, TaskDataConfig

SPLIT = {"test": 0.2, "validation": 0.2}
CSV = {"path": "a.csv", "split": SPLIT}
STEPS = {"sequence_length": 16, "tokens": 1600, "global_batch_tokens": 64, "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.txt", "lines"),
        ("a.b/c.JSONL", "jsonl"),
        ("a.json.gz", "jsonl"),
        ("a.csv.zst", "csv"),
        ("a.parquet", "parquet"),
        ("a.gz", None),
        ("folder", None),
        ("a.xlsx", None),
    ],
)
def test_format_follows_from_the_suffix(path: str, expected: str | None) -> None:
    assert format_of(path) == expected


@pytest.mark.parametrize(
    ("schema", "data", "expected"),
    [
        (SourceConfig, {"path": "a.xyz"}, "add format: lines, text, jsonl"),
        (CorpusConfig, {"sources": [{"path": "a.txt"}], "validation_fraction": 1.0}, "less than 1"),
        (TokenizerConfig, {}, "either train: bpe, wordpiece or unigram, or from: FOLDER"),
        (TokenizerConfig, {"train": "bpe"}, "needs vocab_size"),
        (TokenizerConfig, {"train": "bpe", "vocab_size": 258}, "set at least 259"),
        (TokenizerConfig, {"train": "wordpiece", "vocab_size": 4}, "greater than 4"),
        (TokenizerConfig, {"from": "x", "lowercase": True}, "go with train, not with from"),
        (TokenizerConfig, {"from": "x", "replace": {"a": "b"}}, "go with train, not with from"),
        (ModelConfig, {}, "either architecture"),
        (ModelConfig, {"architecture": "llama", "from": "x"}, "not both"),
        (ModelConfig, {"from": "x", "config": {"a": 1}}, "keeps its own"),
        (ModelConfig, {"architecture": "bert", "config": {"pad_token_id": 1}}, "drop them"),
        (PretrainConfig, {**STEPS, "global_batch_tokens": 65}, r"\(65\) must be a multiple"),
        (PretrainConfig, {**STEPS, "tokens": 32}, "raise tokens"),
        (PretrainConfig, {**STEPS, "optimizer": "muon", "gradient_clipping": 1.0}, "need none"),
        (PretrainConfig, {**STEPS, "learning_rate": float("inf")}, "finite"),
        (SplitConfig, {"test": 0.5, "validation": 0.5}, "leave no rows"),
        (SourceConfig, {"path": "a.txt", "revision": "b"}, "revision go with format: dataset"),
        (TaskDataConfig, {"path": "a.txt", "split": SPLIT}, "add format: csv, jsonl"),
        (
            TaskConfig,
            {"type": "token_classification", "data": CSV, "metric": "macro_f1"},
            "use entity_f1 or entity_precision or",
        ),
        (
            TaskConfig,
            {"type": "classification", "data": {**CSV, "format": "conll"}, "metric": "accuracy"},
            "conll goes with type: token_classification",
        ),
        (Hyperparameters, {"layer_decay": 0.0}, "greater than 0"),
        (Hyperparameters, {"dropout": 1.0}, "less than 1"),
    ],
)
def test_combination_that_cannot_be_meant_is_refused_with_a_way_out(
    schema: type[Schema], data: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValidationError, match=expected):
        schema.model_validate(data)


def test_steps_and_batches_follow_from_token_counts() -> None:
    config = PretrainConfig.model_validate({**STEPS, "tokens": 1599})
    assert config.global_batch_size == 4
    assert config.total_steps == 24  # an incomplete step is not taken


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 1.0), ({"gradient_clipping": 0.5}, 0.5), ({"optimizer": "muon"}, 0.0)],
)
def test_only_adamw_clips_gradients(settings: dict[str, Any], expected: float) -> None:
    assert PretrainConfig.model_validate({**STEPS, **settings}).clipping_norm == expected
