"""What each epoch of a training depends on, and that the training does depend on no more."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_finetune import GOOD, ONE, make_task
from worlds import trained_base

from trainers import courses
from trainers.courses import Courses
from trainers.finetune import FineTuning
from trainers.task_config import Hyperparameters
from trainers.task_inputs import TaskInputs, task_inputs

ROWS = 100


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> TaskInputs:
    folder = tmp_path_factory.mktemp("tone")
    task, data = make_task(folder, "classification")
    return task_inputs(task, trained_base(folder / "base"), data, execution=ONE)


def points() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "schedule": st.sampled_from(["linear", "constant", "wsd"]),
            "epochs": st.integers(1, 12),
            "decay": st.floats(0.01, 0.99),
            "warmup": st.sampled_from([0.0, 0.1, 0.33, 0.99]),
            "batch_size": st.sampled_from([1, 7, 100, 500]),
        }
    )


@given(points(), points())
def test_where_courses_are_the_same_learning_rates_are(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = Courses(ROWS)(one), Courses(ROWS)(other)
    assert (len(first), len(second)) == (one["epochs"], other["epochs"])
    steps = -(-ROWS // one["batch_size"])
    rates = [
        courses.learning_rate(Hyperparameters.model_validate(point), steps)
        for point in (one, other)
    ]
    for epoch, parts in enumerate(zip(first, second, strict=False)):
        if parts[0] != parts[1]:
            break
        for step in range(epoch * steps, (epoch + 1) * steps):
            assert rates[0](step) == rates[1](step)


def test_courses_go_together_until_one_goes_down() -> None:
    def shared(one: dict[str, Any], other: dict[str, Any]) -> int:
        pairs = zip(Courses(ROWS)(one), Courses(ROWS)(other), strict=False)
        return sum(a == b for a, b in pairs)

    assert shared({"schedule": "constant", "epochs": 3}, {"schedule": "constant", "epochs": 8}) == 3
    short = {"schedule": "wsd", "decay": 0.25, "epochs": 4}
    assert shared(short, {**short, "epochs": 8}) == 3
    assert shared(short, {"schedule": "constant", "epochs": 8}) == 3
    assert shared(short, {**short, "decay": 0.5}) == 2
    assert shared(short, {**short, "decay": 0.4}) == 2  # it goes down within the third epoch
    assert shared(short, {**short, "learning_rate": 0.1}) == 0
    assert shared({"epochs": 4}, {"epochs": 8}) == 0


@pytest.mark.parametrize(
    ("one", "other", "epochs"),
    [
        ({"schedule": "constant", "epochs": 2}, {"schedule": "constant", "epochs": 4}, 2),
        (
            {"schedule": "wsd", "decay": 0.5, "epochs": 4},
            {"schedule": "wsd", "decay": 0.5, "epochs": 6},
            2,
        ),
    ],
)
def test_what_goes_together_has_the_same_weights(
    tone: TaskInputs, one: dict[str, Any], other: dict[str, Any], epochs: int
) -> None:
    course = Courses(len(tone.train))
    assert course(one)[epochs - 1] == course(other)[epochs - 1]

    def weights(point: dict[str, Any]) -> dict[str, torch.Tensor]:
        slot = FineTuning(tone)
        slot.start({**GOOD, "dropout": 0.1, **point})
        for _ in range(epochs):
            slot.train_epoch()
        return slot.weights

    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["head", "lora"])
def test_what_is_frozen_is_not_saved(tone: TaskInputs, tmp_path: Path, method: str) -> None:
    sizes = {}
    for name in ("full", method):
        (tmp_path / name).mkdir()
        slot = FineTuning(tone)
        slot.start({**GOOD, "method": name, "lora_rank": 1})
        slot.step()
        slot.save(tmp_path / name)
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).iterdir())
    assert sizes[method] < 0.25 * sizes["full"]
    again = FineTuning(tone)
    again.start({**GOOD, "method": method, "lora_rank": 1})
    again.load(tmp_path / method)
    assert all(torch.equal(again.weights[name], slot.weights[name]) for name in slot.weights)
    assert slot.step() == again.step()


def test_a_frozen_base_has_no_dropout_and_its_head_has(tone: TaskInputs) -> None:
    slot = FineTuning(tone)
    slot.start({**GOOD, "method": "head", "dropout": 0.5})
    slot.step()
    slot.model.train()
    assert not any(part.training for part in slot.model.base_model.modules())
    slot.start({**GOOD, "dropout": 0.5})
    slot.model.train()
    assert all(part.training for part in slot.model.base_model.modules())
