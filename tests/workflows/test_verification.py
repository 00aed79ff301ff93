"""What a certificate says, and when it says that all is well."""

import math
from typing import Any

import pytest

from cluster.config import GangConfig
from workflows.config import ConfigError, PipelineConfig
from workflows.verification import (
    judged,
    kill_points,
    largest_relative_gap,
    other_size,
    shortened,
)

STRAIGHT = {"weights_sha256": "aa", "samples_digest": "bb", "losses": [2.0, 1.0]}


@pytest.mark.parametrize(
    ("killed", "resized", "verdict"),
    [
        ({}, {}, "passed"),
        ({}, None, "passed"),
        ({}, {"weights_sha256": "other"}, "passed"),
        ({}, {"losses": [2.0, 1.000001]}, "passed"),
        ({"weights_sha256": "other"}, {}, "failed"),
        ({"samples_digest": "other"}, {}, "failed"),
        ({}, {"samples_digest": "other"}, "failed"),
        ({}, {"losses": [2.0, 1.0001]}, "failed"),
        ({}, {"losses": [2.0]}, "failed"),
        ({}, {"losses": [2.0, math.nan]}, "failed"),
    ],
)
def test_passed_is_equal_weights_after_kills_and_close_losses_after_resizing(
    killed: dict[str, Any], resized: dict[str, Any] | None, verdict: str
) -> None:
    other = None if resized is None else STRAIGHT | resized
    assert judged(STRAIGHT, STRAIGHT | killed, other)["verdict"] == verdict


def test_gap_is_relative_and_infinite_where_steps_are_missing() -> None:
    assert largest_relative_gap([2.0, 4.0], [2.0, 4.4]) == pytest.approx(0.1)
    assert largest_relative_gap([2.0], [2.0, 4.0]) == math.inf
    assert largest_relative_gap([], []) == 0.0


@pytest.mark.parametrize(("workers", "batch", "expected"), [(1, 8, None), (2, 8, 1), (8, 12, 6)])
def test_other_size_shares_the_global_batch(workers: int, batch: int, expected: int | None) -> None:
    assert other_size(GangConfig(workers=workers), batch) == expected


def test_kill_points_are_different_steps_before_the_last() -> None:
    points = kill_points(10, 4, seed=0)
    assert len(set(points)) == 4
    assert sorted(points) == list(points)
    assert all(1 <= point < 10 for point in points)
    assert points == kill_points(10, 4, seed=0) != kill_points(10, 4, seed=1)
    assert len(kill_points(3, 9, seed=0)) == 2


def test_too_few_steps_for_a_branch_are_told(pipeline: dict[str, Any]) -> None:
    pipeline["pretrain"]["schedule"] = {"name": "wsd", "branches": [0.25, 0.5]}
    config = PipelineConfig.model_validate(pipeline)
    with pytest.raises(ConfigError, match=r"--steps 6 are too few: .* branch at 0\.25"):
        shortened(config, 6, 2)


def test_shortened_pipeline_saves_often_and_outlives_its_kills(pipeline: dict[str, Any]) -> None:
    config = shortened(PipelineConfig.model_validate(pipeline), 10, 4)
    assert config.pretrain.total_steps == 10
    assert config.pretrain.checkpoint.every_steps == 2
    assert config.cluster.retry.max_attempts > 4
