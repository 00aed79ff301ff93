from typing import Any

import numpy as np
import pytest

from trainers import metrics
from trainers.baselines import evaluate
from trainers.examples import Examples
from trainers.task_config import SplitConfig, TaskConfig, TaskDataConfig
from trainers.task_types import TaskType, type_of

TRUTH = [["B-per", "I-per", "O", "B-loc"], ["O", "B-loc"]]


@pytest.mark.parametrize(
    ("predicted", "precision", "recall", "accuracy"),
    [
        (TRUTH, 1.0, 1.0, 1.0),
        # half a person is none
        ([["B-per", "O", "O", "B-loc"], ["O", "B-loc"]], 2 / 3, 2 / 3, 5 / 6),
        ([["O", "O", "O", "O"], ["O", "O"]], 0.0, 0.0, 2 / 6),
        ([["B-per", "I-per", "O", "B-loc"], ["B-loc", "B-loc"]], 3 / 4, 1.0, 5 / 6),
    ],
)
def test_entities_count_whole(
    predicted: list[list[str]], precision: float, recall: float, accuracy: float
) -> None:
    f1 = 2 * precision * recall / (precision + recall) if precision else 0.0
    assert metrics.of_entities(TRUTH, predicted) == pytest.approx(
        {
            "entity_f1": f1,
            "entity_precision": precision,
            "entity_recall": recall,
            "accuracy": accuracy,
        }
    )


def test_macro_f1_weighs_classes_equally() -> None:
    found = metrics.of_labels(["a", "a", "a", "b"], ["a", "a", "a", "a"])
    expected = {"accuracy": 0.75, "macro_f1": (6 / 7) / 2, "micro_f1": 0.75, "matthews": 0.0}
    assert found == pytest.approx(expected)


def test_sets_of_labels_count_whole_in_accuracy_and_alone_in_f1() -> None:
    truth = np.array([[1, 1], [0, 1], [0, 0]], dtype=np.bool_)
    found = metrics.of_label_sets(truth, np.array([[1, 0], [0, 1], [0, 0]], dtype=np.bool_))
    expected = {"accuracy": 2 / 3, "macro_f1": (1 + 2 / 3) / 2, "micro_f1": 0.8}
    assert found == pytest.approx(expected)


def test_area_is_the_share_of_pairs_in_order_and_leaves_out_labels_without_a_curve() -> None:
    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=np.bool_)
    probabilities = np.array([[0.4, 0.5, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
    # Label 0: 1 of 2 pairs in order; label 1: 1 of 2; label 2 stands nowhere.
    assert metrics.of_ranking(truth, probabilities) == {"auroc": pytest.approx(0.5)}
    assert metrics.of_ranking(truth[:, 2:], probabilities[:, 2:]) == {}


def test_correlations_are_of_values_and_of_ranks() -> None:
    found = metrics.of_numbers([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 4.0, 9.0])
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(0.9583, abs=1e-4)
    assert found["mse"] == pytest.approx((4 + 36) / 4)


def test_constant_numbers_order_nothing() -> None:
    assert metrics.of_numbers([0.0, 1.0], [3.0, 3.0]) == {
        "mse": 6.5,
        "pearson": 0.0,
        "spearman": 0.0,
    }
    assert metrics.of_numbers([1.0, 1.0], [3.0, 4.0]) == {"mse": 6.5}


def kind(name: str, metric: str, labels: list[str], **changes: Any) -> TaskType:
    data: dict[str, Any] = {
        "path": "x",
        "format": "jsonl",
        "split": SplitConfig(test=0.3, validation=0.2),
    }
    data |= changes.pop("data", {})
    config = TaskDataConfig(**data)
    task = TaskConfig(type=name, data=config, metric=metric, **changes)  # type: ignore[arg-type]
    return type_of(task, labels)


SPOKEN = Examples(
    [f"w{n} good" for n in range(9)] + [f"w{n} bad" for n in range(8)], ["pos"] * 9 + ["neg"] * 8
)


def test_tf_idf_beats_the_majority_where_words_tell_the_label() -> None:
    found = evaluate(kind("classification", "accuracy", ["neg", "pos"]), SPOKEN, SPOKEN, SPOKEN)
    assert found["majority"]["accuracy"] == pytest.approx(9 / 17)
    assert found["majority"]["auroc"] == 0.5
    for name in ("tf-idf", "tf-idf of characters"):
        assert found[name]["accuracy"] == found[name]["auroc"] == 1.0


def test_tf_idf_answers_for_a_label_that_training_rows_lack() -> None:
    labels = ["neg", "none", "pos"]
    found = evaluate(kind("classification", "accuracy", labels), SPOKEN, SPOKEN, SPOKEN)
    assert found["tf-idf"]["accuracy"] == 1.0


def test_tf_idf_finds_several_labels() -> None:
    rows = Examples(
        [f"w{n} {'good' * (n % 2)} {'long' * (n % 3 == 0)}" for n in range(24)],
        [["g"] * (n % 2) + ["l"] * (n % 3 == 0) for n in range(24)],
    )
    several = kind("classification", "accuracy", ["g", "l"], multi_label=True)
    found = evaluate(several, rows, rows, rows)
    assert found["tf-idf"]["accuracy"] == 1.0
    assert found["majority"]["accuracy"] < 0.6


def test_numbers_have_their_mean_as_the_constant() -> None:
    rows = Examples([f"w{n} {'good ' * (n % 4)}" for n in range(24)], [n % 4 for n in range(24)])
    found = evaluate(kind("regression", "mse", []), rows, rows, rows)
    assert found["mean"] == pytest.approx({"mse": 1.25, "pearson": 0.0, "spearman": 0.0})
    assert found["tf-idf"]["mse"] < 0.3


def test_tf_idf_sees_what_two_texts_share() -> None:
    words = [f"word{n}" for n in range(12)]
    rows = Examples(
        [words[n % 12] for n in range(96)],
        ["same" if n % 2 else "other" for n in range(96)],
        [words[n % 12 if n % 2 else (n + 5) % 12] for n in range(96)],
    )
    pairs = kind("classification", "accuracy", ["other", "same"], data={"text_pair": "b"})
    assert evaluate(pairs, rows, rows, rows)["tf-idf"]["accuracy"] == 1.0


def test_dictionary_gives_each_word_its_usual_tag() -> None:
    train = Examples([["in", "Rome"], ["in", "Rome"], ["Rome"]], [["O", "B"], ["O", "B"], ["O"]])
    test = Examples([["in", "Rome", "Oslo"]], [["O", "B", "O"]])
    found = evaluate(kind("token_classification", "entity_f1", ["B", "O"]), train, test, test)
    assert found["dictionary"]["accuracy"] == 1.0
    assert found["majority"]["entity_f1"] == 0.0
