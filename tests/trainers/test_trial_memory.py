"""A trial that runs out of memory goes on in smaller parts of the same batches."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_answers import prepared as prepared_answers
from test_answers import replies, task_of
from test_finetune import make_task
from worlds import trained_base

from trainers.errors import OutOfMemoryError
from trainers.finetune import FineTuning
from trainers.task_config import TaskConfig
from trainers.task_inputs import TaskInputs, TrialExecution, task_inputs

ONE = TrialExecution(threads=1, use_gpu=False)

SETTINGS = {"learning_rate": 0.01, "epochs": 2, "dropout": 0.0, "batch_size": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_base(tmp_path_factory.mktemp("base"))


def inputs_of(task: TaskConfig, base: Path, data: Path) -> TaskInputs:
    return task_inputs(task, base, data, execution=ONE)


def with_room_for(slot: FineTuning, tokens: int) -> list[tuple[int, int]]:
    """Let training fail with more tokens at once; the rows and lengths that were tried."""
    tried: list[tuple[int, int]] = []

    def check(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if module.training:
            tried.append(tuple(kwargs["input_ids"].shape))
            if kwargs["input_ids"].numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    slot.model.register_forward_pre_hook(check, with_kwargs=True)
    return tried


def trained(
    inputs: TaskInputs, tokens: int | None, **settings: Any
) -> tuple[FineTuning, list[tuple[int, int]]]:
    slot = FineTuning(inputs)
    slot.start({**SETTINGS, **settings})
    tried = with_room_for(slot, tokens) if tokens else []
    while not slot.is_finished:
        slot.train_epoch()
    return slot, tried


def classes(folder: Path) -> tuple[TaskConfig, Path]:
    return make_task(folder, "classification")


def weighted(folder: Path) -> tuple[TaskConfig, Path]:
    task, data = make_task(folder, "classification")
    return task.model_copy(update={"class_weights": {"good": 5.0, "bad": 0.5}}), data


def words(folder: Path) -> tuple[TaskConfig, Path]:
    return make_task(folder, "token_classification")


def written(folder: Path) -> tuple[TaskConfig, Path]:
    task = task_of("generation", "loss")
    return task, prepared_answers(folder, task, replies(60))


@pytest.mark.parametrize("make", [classes, weighted, words, written])
def test_smaller_parts_of_the_same_batches_give_the_same_weights(
    base: Path, tmp_path: Path, make: Callable[[Path], tuple[TaskConfig, Path]]
) -> None:
    inputs = inputs_of(*((task := make(tmp_path))[0], base, task[1]))
    plain, _ = trained(inputs, None, token_dropout=0.2)
    longest = max(map(len, inputs.train.ids))
    pressed, tried = trained(inputs, room := 5 * longest, token_dropout=0.2)
    done = [rows for rows, length in tried if rows * length <= room]
    assert 0 < len(tried) - len(done) <= 4  # halved a few times, and not in each batch anew
    assert sum(done) == 2 * len(inputs.train)
    short, long = ({"attention_mask": torch.ones(16, length)} for length in (8, longest))
    assert pressed._rows_of_part(short) > pressed._rows_of_part(long)
    for name, weight in plain.weights.items():
        # In the mean: where a gradient is nearly nothing, AdamW makes much of its last digits.
        assert (weight - pressed.weights[name]).abs().mean() < 5e-6, name


def test_one_row_that_does_not_fit_ends_the_trial(base: Path, tmp_path: Path) -> None:
    task, data = classes(tmp_path)
    slot = FineTuning(inputs_of(task, base, data))
    slot.start(SETTINGS)
    tried = with_room_for(slot, 0)
    with pytest.raises(OutOfMemoryError, match="Tried to allocate 2"):
        slot.train_epoch()
    assert [rows for rows, _ in tried] == [16, 8, 4, 2, 1]


def test_the_next_configuration_begins_with_whole_batches(base: Path, tmp_path: Path) -> None:
    task, data = classes(tmp_path)
    slot, _ = trained(inputs_of(task, base, data), 200)
    slot.start(SETTINGS)
    tried = with_room_for(slot, 1 << 20)
    slot.train_epoch()
    assert tried[0][0] == 16


def test_a_step_that_has_changed_weights_is_not_done_again(base: Path, tmp_path: Path) -> None:
    task, data = classes(tmp_path)
    slot = FineTuning(inputs_of(task, base, data))
    slot.start(SETTINGS)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory, for the optimizer")

    slot._engine._optimizer.register_step_pre_hook(fail)
    with pytest.raises(OutOfMemoryError, match="for the optimizer"):
        slot.train_epoch()


def test_validation_that_does_not_fit_is_done_in_parts(base: Path, tmp_path: Path) -> None:
    task, data = classes(tmp_path)
    slot = FineTuning(inputs_of(task, base, data))
    slot.start(SETTINGS)
    expected, tried = slot.validate(), []

    def check(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        tried.append(len(kwargs["input_ids"]))
        if tried[-1] > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    slot.model.register_forward_pre_hook(check, with_kwargs=True)
    assert slot.validate() == expected
    assert max(tried[3:]) == 8


def test_other_errors_are_not_taken_for_it(base: Path, tmp_path: Path) -> None:
    task, data = classes(tmp_path)
    slot = FineTuning(inputs_of(task, base, data))
    slot.start(SETTINGS)

    def fail(*_: Any) -> None:
        raise RuntimeError("no kernel")

    slot.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no kernel"):
        slot.train_epoch()
