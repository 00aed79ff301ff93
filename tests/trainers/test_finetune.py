"""Fine-tuning from a tiny base, in this process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_classification, write_entities
from transformers import pipeline
from worlds import trained_base

from trainers import bases, retraining, task_data, tokenizer
from trainers.errors import DataError
from trainers.finetune import FineTuning
from trainers.predict import Predictor
from trainers.retraining import SavedModel, Training
from trainers.task_batches import batches_by_length
from trainers.task_config import Hyperparameters, SplitConfig, TaskConfig, TaskDataConfig
from trainers.task_inputs import TaskInputs, TrialExecution, task_inputs
from trainers.task_types import class_of
from trainers.task_types.base import Encoded

ONE = TrialExecution(threads=1, use_gpu=False)

GOOD = {"learning_rate": 0.01, "epochs": 3, "dropout": 0.0}
SPLIT = SplitConfig(test=0.25, validation=0.25)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_base(tmp_path_factory.mktemp("base"))


def make_task(folder: Path, kind: str) -> tuple[TaskConfig, Path]:
    is_words = kind == "token_classification"
    path = folder / ("rows.txt" if is_words else "rows.csv")
    (write_entities if is_words else write_classification)(path)
    data = TaskDataConfig(path=path.name, format="conll" if is_words else "csv", split=SPLIT)
    metric = "entity_f1" if is_words else "accuracy"
    task = TaskConfig(type=kind, data=data, metric=metric, max_length=96)  # type: ignore[arg-type]
    (folder / "data").mkdir()
    task_data.prepare(data, class_of(kind, multi_label=False), folder, folder / "data")
    return task, folder / "data"


@pytest.fixture(scope="module")
def tone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskInputs:
    task, data = make_task(tmp_path_factory.mktemp("tone"), "classification")
    return task_inputs(task, base, data, execution=ONE)


def train(slot: FineTuning, **changes: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    slot.start({**GOOD, **changes})
    scores: dict[str, float] = {}
    while not slot.is_finished:
        scores = slot.step()
    return scores, {name: tensor.clone() for name, tensor in slot.weights.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_classification_is_learnt(tone: TaskInputs) -> None:
    scores, _ = train(FineTuning(tone))
    assert scores["accuracy"] > 0.9


def test_entities_are_learnt(base: Path, tmp_path: Path) -> None:
    task, data = make_task(tmp_path, "token_classification")
    inputs = task_inputs(task, base, data, execution=ONE)
    scores, _ = train(FineTuning(inputs), epochs=4)
    assert scores["entity_f1"] > 0.9


def test_used_slot_gives_what_a_fresh_one_gives(tone: TaskInputs) -> None:
    slot = FineTuning(tone)
    train(slot, seed=3, epochs=1)
    used, fresh = train(slot), train(FineTuning(tone))
    assert used[0] == fresh[0]
    assert same(used[1], fresh[1])


def changed_from_base(slot: FineTuning, inputs: TaskInputs) -> set[str]:
    return {
        name
        for name, weight in slot.weights.items()
        if not np.array_equal(weight, inputs.weights.get(name, np.empty(0)))
    }


def test_head_method_leaves_the_backbone_as_it_was(tone: TaskInputs) -> None:
    slot = FineTuning(tone)
    train(slot, method="head", epochs=1)
    assert changed_from_base(slot, tone) == {"score.weight"}


def test_frozen_layers_are_the_lowest_with_the_embeddings(tone: TaskInputs) -> None:
    slot = FineTuning(tone)
    train(slot, frozen_layers=1, epochs=1)
    changed = changed_from_base(slot, tone)
    assert any("layers.1." in name for name in changed)
    assert {"model.norm.weight", "score.weight"} <= changed
    assert not any("layers.0." in name or "embed" in name for name in changed)


def test_more_frozen_layers_than_there_are_are_refused(tone: TaskInputs) -> None:
    with pytest.raises(DataError, match="frozen_layers is 3; the base has 2 layers"):
        FineTuning(tone).start({**GOOD, "frozen_layers": 3})


def test_gradual_unfreezing_frees_one_layer_an_epoch_from_the_top(tone: TaskInputs) -> None:
    slot = FineTuning(tone)
    slot.start({**GOOD, "epochs": 4, "gradual_unfreezing": True, "warmup": 0.0})
    lowest = []
    while not slot.is_finished:
        slot.train_epoch()
        changed = changed_from_base(slot, tone)
        parts = ("embed", "layers.0.", "layers.1.", "score")
        lowest.append(next(part for part in parts if any(part in name for name in changed)))
    assert lowest == ["score", "layers.1.", "layers.0.", "embed"]


@pytest.mark.parametrize(
    "method",
    [{}, {"method": "lora", "lora_dropout": 0.1}, {"method": "head"}, {"gradual_unfreezing": True}],
    ids=str,
)
def test_interrupted_trial_goes_on_to_the_same_weights(
    tone: TaskInputs, tmp_path: Path, method: dict[str, Any]
) -> None:
    settings = {**GOOD, "dropout": 0.1, "token_dropout": 0.1, **method}
    whole = train(FineTuning(tone), **settings)
    first = FineTuning(tone)
    first.start(settings)
    first.step()
    first.save(tmp_path)
    second = FineTuning(tone)
    train(second, epochs=1)  # of another configuration, in the same process
    second.start(settings)
    second.load(tmp_path)
    scores: dict[str, float] = {}
    while not second.is_finished:
        scores = second.step()
    assert scores == whole[0]
    assert same(second.weights, whole[1])


def test_training_goes_on_with_other_hyperparameters_as_a_population_does(
    tone: TaskInputs, base: Path, tmp_path: Path
) -> None:
    other = {**GOOD, "learning_rate": 0.002, "label_smoothing": 0.1, "dropout": 0.1}
    first, second = FineTuning(tone), FineTuning(tone)
    first.start(GOOD)
    first.train_epoch()
    first.save(tmp_path)
    second.start(other)
    second.load(tmp_path)
    while not second.is_finished:
        second.train_epoch()
    first.change(other)
    while not first.is_finished:
        first.train_epoch()
    assert same(first.weights, second.weights)

    task, data = make_task(tmp_path, "classification")
    plan = training(base, task, data, tmp_path / "model")
    retraining.train_and_export(
        replace(plan, changes=((1, Hyperparameters.model_validate(other)),))
    )
    again = bases.weights_of(tmp_path / "model")[1]
    assert all(np.array_equal(weight, again[name]) for name, weight in first.weights.items())


def test_adapters_train_and_the_matrices_beside_them_stay(tone: TaskInputs) -> None:
    slot = FineTuning(tone)
    scores, weights = train(slot, method="lora", learning_rate=0.02, epochs=6)
    assert scores["accuracy"] > 0.9
    for name, weight in weights.items():
        plain = name.replace(".base_layer", "").replace(".original_module", "")
        if plain in tone.weights and "lora_" not in name:
            assert np.array_equal(weight, tone.weights[plain]), name
    assert sum("lora_A" in name for name in weights) == 2 * 7  # every matrix of both layers


@pytest.mark.parametrize(
    "changes",
    [{"lora_rank": 2}, {"lora_alpha": 64.0}, {"lora_dropout": 0.5}, {"layer_decay": 0.5}],
    ids=str,
)
def test_every_hyperparameter_of_adapters_does_something(
    tone: TaskInputs, changes: dict[str, Any]
) -> None:
    slots = FineTuning(tone), FineTuning(tone)
    train(slots[0], method="lora", epochs=1)
    train(slots[1], method="lora", epochs=1, **changes)
    heads = ["score.modules_to_save.default.weight"] * 2
    one, other = (slot.weights[name] for slot, name in zip(slots, heads, strict=True))
    assert not torch.equal(one, other)


def test_scratch_control_knows_nothing_of_the_base(tone: TaskInputs) -> None:
    slot = FineTuning(tone, from_scratch=True)
    slot.start(GOOD)
    matrices = {
        name: w for name, w in slot.weights.items() if w.dim() == 2 and name in tone.weights
    }
    assert matrices
    assert not any(np.array_equal(w, tone.weights[name]) for name, w in matrices.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.005},
        {"warmup": 0.5},
        {"schedule": "constant"},
        {"schedule": "wsd"},
        {"schedule": "wsd", "decay": 0.9},
        {"dropout": 0.3},
        {"token_dropout": 0.3},
        {"label_smoothing": 0.1},
        {"prefix_loss": 0.5},
        {"layer_decay": 0.5},
        {"weight_decay": 0.5},
        {"seed": 1},
        {"batch_size": 8},
        {"frozen_layers": 1},
        {"gradual_unfreezing": True},
        {"method": "lora"},
        {"method": "head"},
    ],
    ids=str,
)
def test_every_hyperparameter_does_something(tone: TaskInputs, changes: dict[str, Any]) -> None:
    _, plain = train(FineTuning(tone), epochs=1)
    _, changed = train(FineTuning(tone), epochs=1, **changes)
    assert not same(plain, changed)


def test_token_dropout_is_for_training_rows_alone(tone: TaskInputs) -> None:
    plain, dropping = FineTuning(tone), FineTuning(tone)
    plain.start({**GOOD, "epochs": 1})
    dropping.start({**GOOD, "epochs": 1, "token_dropout": 0.9})
    plain.train_epoch()
    dropping.train_epoch()
    assert not same(plain.weights, dropping.weights)
    dropping.model.load_state_dict(plain.model.state_dict())
    assert dropping.validate() == plain.validate()


def test_every_epoch_has_an_order_of_its_own(tone: TaskInputs) -> None:
    slot = FineTuning(tone)
    slot.start({**GOOD, "learning_rate": 1e-30, "weight_decay": 0.0})
    # Weights as good as fixed: the same batches would give the same mean loss to the last bit.
    assert slot.train_epoch() != slot.train_epoch()


def test_prefix_loss_learns_the_task_too(tone: TaskInputs) -> None:
    scores, _ = train(FineTuning(tone), prefix_loss=0.3, label_smoothing=0.1)
    assert scores["accuracy"] > 0.9


def test_batches_hold_each_row_once_and_rows_of_similar_length() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 60, 333)
    rows = Encoded([np.zeros(n, dtype=np.int64) for n in lengths], [np.asarray(0)] * 333)
    batches = batches_by_length(rows, 16, generator)
    assert sorted(row for batch in batches for row in batch) == list(range(333))
    assert max(map(len, batches)) == 16
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.15 * lengths.sum()


def training(base: Path, task: TaskConfig, data: Path, output: Path) -> Training:
    point = Hyperparameters.model_validate(GOOD)
    return Training(task, base, data, point, False, output, execution=ONE)


def test_exported_model_says_what_the_training_measured(base: Path, tmp_path: Path) -> None:
    task, data = make_task(tmp_path, "classification")
    plan = training(base, task, data, tmp_path / "model")
    scores = retraining.train_and_export(plan)
    again, _ = retraining.evaluate(plan.output, task, task_data.load(data, task_data.VALIDATION))
    assert again == {name: scores[name] for name in again}
    test = task_data.load(data, task_data.TEST)
    _, predictions = retraining.test(SavedModel(plan.output, task, data, ONE))
    labels = [prediction.label for prediction in predictions]
    stock = pipeline("text-classification", model=str(plan.output))
    assert [answer["label"] for answer in stock(test.texts)] == labels


def test_words_behind_the_longest_text_get_the_label_that_claims_nothing(
    base: Path, tmp_path: Path
) -> None:
    task, data = make_task(tmp_path, "token_classification")
    plan = training(base, task, data, tmp_path / "model")
    retraining.train_and_export(plan)
    words = ["in", "Rome"] * 30
    (prediction,) = Predictor(plan.output, task.model_copy(update={"max_length": 10})).predict(
        [words]
    )
    assert len(prediction.label) == len(prediction.score) == 60
    assert set(prediction.label[10:]) == {"O"}
    assert set(prediction.score[10:]) == {0.0}


def test_base_may_be_any_folder_with_its_own_special_tokens(base: Path) -> None:
    network, weights = bases.weights_of(base)
    assert network["vocab_size"] == len(tokenizer.load(base))
    assert all(weight.dtype == np.float32 for weight in weights.values())
    assert network["max_position_embeddings"] == 128


def test_fewer_labels_are_trained_in_as_many_steps(base: Path, tmp_path: Path) -> None:
    task, data = make_task(tmp_path, "classification")
    plan = replace(training(base, task, data, tmp_path / "model"), label_fraction=0.25)
    few = task_inputs(task, base, data, execution=ONE, label_fraction=plan.label_fraction)
    rows = task_data.count(data, task_data.TRAIN)
    assert len(few.train) == pytest.approx(rows / 4, abs=1)
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        take = FineTuning._training_batch
        patch.setattr(
            FineTuning,
            "_training_batch",
            lambda self, chosen, generator: (steps.append(chosen), take(self, chosen, generator))[
                1
            ],
        )
        retraining.train_and_export(plan)
    assert len(steps) == pytest.approx(GOOD["epochs"] * rows / 16, abs=rows / 4 / 16 + 1)
    assert (plan.output / "model.safetensors").is_file()


def test_heads_without_a_dropout_of_their_own_take_that_of_the_trial(
    base: Path, tmp_path: Path
) -> None:
    task, data = make_task(tmp_path, "token_classification")
    slot = FineTuning(task_inputs(task, base, data, execution=ONE))
    for dropout in (0.0, 0.3):
        slot.start({**GOOD, "dropout": dropout})
        found = [part.p for part in slot.model.modules() if isinstance(part, torch.nn.Dropout)]
        assert found == [dropout]
