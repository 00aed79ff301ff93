from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainers.pretrain_config import PretrainConfig, ScheduleConfig
from trainers.schedules import Leg, learning_rate, legs


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("cosine", 0, 0.1),
        ("cosine", 9, 1.0),
        ("cosine", 55, 0.5),
        ("cosine", 100, 0.0),
        ("linear", 9, 1.0),
        ("linear", 55, 0.5),
        ("linear", 100, 0.0),
        ("cosine", 99, 0.0003),
        ("linear", 99, 0.0111),
        ("constant", 4, 0.5),
        ("constant", 99, 1.0),
        ("wsd", 4, 0.5),
        ("wsd", 10, 1.0),
        ("wsd", 80, 1.0),
        ("wsd", 85, 0.5),  # 1 - sqrt(5 / 20)
        ("wsd", 99, 0.0253),
        ("wsd", 100, 0.0),
    ],
)
def test_schedule_warms_up_and_then_takes_its_shape(name: str, step: int, expected: float) -> None:
    config = ScheduleConfig(name=name, warmup=0.1)  # type: ignore[arg-type]
    rate = learning_rate(config, peak=1.0, total_steps=100)
    assert rate(step) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({"name": "linear"}, 10, 0.5),
        ({"name": "cosine"}, 10, 0.5),
        ({"name": "wsd"}, 10, 0.5),
        ({"name": "wsd", "decay": 0.4, "decay_shape": "linear"}, 8, 0.5 + 1.5 * 0.5),
        ({"name": "wsd", "decay": 0.4, "decay_shape": "linear"}, 6, 2.0),
    ],
)
def test_schedule_ends_at_its_floor(changes: dict[str, Any], step: int, expected: float) -> None:
    config = ScheduleConfig(warmup=0.0, floor=0.25, **changes)
    rate = learning_rate(config, peak=2.0, total_steps=10)
    assert rate(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        ([], [Leg(0, 100, False)]),
        ([0.5], [Leg(0, 50, False), Leg(50, 60, True), Leg(50, 100, False)]),
        (
            [0.2, 0.8],
            [
                Leg(0, 20, False),
                Leg(20, 24, True),
                Leg(20, 80, False),
                Leg(80, 96, True),
                Leg(80, 100, False),
            ],
        ),
    ],
)
def test_branch_decays_beside_the_trunk(branches: list[float], expected: list[Leg]) -> None:
    config = ScheduleConfig(name="wsd", branches=branches)
    assert legs(config, 100) == expected


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedule_without_branches_is_one_leg(name: Any) -> None:
    assert legs(ScheduleConfig(name=name), 30) == [Leg(0, 30, False)]


@pytest.mark.parametrize(
    ("leg", "step", "expected"),
    [
        (Leg(0, 50, False), 49, 1.0),
        (Leg(50, 60, True), 50, 1.0),
        (Leg(50, 60, True), 55, 0.5),
        (Leg(50, 60, True), 59, 0.1),
        (Leg(50, 100, False), 55, 1.0),
        (Leg(50, 100, False), 90, 0.5),
        (Leg(50, 100, False), 99, 0.05),
    ],
)
def test_branch_has_a_rate_of_its_own_and_the_trunk_does_not_notice(
    leg: Leg, step: int, expected: float
) -> None:
    config = ScheduleConfig(name="wsd", decay_shape="linear", branches=[0.5])
    rate = learning_rate(config, peak=1.0, total_steps=100, leg=leg)
    assert rate(step) == pytest.approx(expected)


@settings(deadline=None)
@given(
    total=st.integers(50, 5000),
    shares=st.lists(st.integers(10, 75), max_size=5, unique=True).map(sorted),
    decay=st.sampled_from([0.1, 0.2]),
)
def test_trunk_is_run_once_and_each_branch_leaves_it_where_a_leg_ends(
    total: int, shares: list[int], decay: float
) -> None:
    config = ScheduleConfig(name="wsd", decay=decay, branches=[share / 100 for share in shares])
    starts = [round(share * total) for share in config.branches]
    assume(len(set(starts)) == len(starts) and all(round(decay * start) for start in starts))
    found = legs(config, total)
    trunk = [leg for leg in found if not leg.is_branch]
    assert (trunk[0].start_step, trunk[-1].stop_step) == (0, total)
    assert all(one.stop_step == other.start_step for one, other in pairwise(trunk))
    for before, leg in pairwise(found):
        assert not leg.is_branch or leg.start_step == before.stop_step
    branches = [leg for leg in found if leg.is_branch]
    assert [leg.start_step for leg in branches] == starts
    lengths = [leg.stop_step - leg.start_step for leg in branches]
    assert lengths == [round(decay * start) for start in starts]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": 0.1}, "decay go with name: wsd; cosine has its own shape"),
        ({"branches": [0.5], "name": "constant"}, "branches go with name: wsd"),
        ({"decay_shape": "sqrt", "decay": 0.2, "name": "linear"}, "decay and decay_shape go with"),
        ({"name": "wsd", "warmup": 0.9}, "more than all steps"),
        ({"name": "wsd", "branches": [0.5, 0.4]}, "must ascend"),
        ({"name": "wsd", "branches": [0.04]}, "must lie behind warmup"),
        (
            {"name": "wsd", "branches": [0.85]},
            r"beginning of the last decay \(0\.8\)",
        ),
        ({"name": "wsd", "branches": [0.5, 0.51]}, "of 20 steps in all the branch at 0.51 leaves"),
        ({"name": "wsd", "branches": [0.1], "decay": 0.1}, "decays in 0; raise tokens"),
    ],
)
def test_schedule_that_says_two_things_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretrainConfig.model_validate(
            {
                "sequence_length": 16,
                "tokens": 20 * 128,
                "global_batch_tokens": 128,
                "learning_rate": 1e-3,
                "schedule": changes,
            }
        )
