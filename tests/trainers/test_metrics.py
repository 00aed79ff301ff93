import pytest

from trainers import metrics
from trainers.baselines import evaluate
from trainers.task_config import SplitConfig, TaskConfig, TaskDataConfig
from trainers.tasks import Examples

TRUTH = [["B-per", "I-per", "O", "B-loc"], ["O", "B-loc"]]


@pytest.mark.parametrize(
    ("predicted", "f1", "accuracy"),
    [
        (TRUTH, 1.0, 1.0),
        ([["B-per", "O", "O", "B-loc"], ["O", "B-loc"]], 2 / 3, 5 / 6),  # half a person is none
        ([["O", "O", "O", "O"], ["O", "O"]], 0.0, 2 / 6),
        ([["B-per", "I-per", "O", "B-loc"], ["B-loc", "B-loc"]], 6 / 7, 5 / 6),
    ],
)
def test_entities_count_whole(predicted: list[list[str]], f1: float, accuracy: float) -> None:
    found = metrics.score("token_classification", TRUTH, predicted)
    assert found == pytest.approx({"entity_f1": f1, "accuracy": accuracy})


def test_macro_f1_weighs_classes_equally() -> None:
    found = metrics.score("classification", ["a", "a", "a", "b"], ["a", "a", "a", "a"])
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (6 / 7) / 2})


def task(kind: str, metric: str) -> TaskConfig:
    split = SplitConfig(test=0.3, validation=0.2)
    data = TaskDataConfig(path="x", format="jsonl", split=split)
    return TaskConfig(type=kind, data=data, metric=metric)  # type: ignore[arg-type]


def test_tf_idf_beats_the_majority_where_words_tell_the_label() -> None:
    rows = Examples([f"w{n} good" for n in range(9)] + [f"w{n} bad" for n in range(8)], [])
    rows = Examples(rows.texts, ["pos"] * 9 + ["neg"] * 8)
    found = evaluate(task("classification", "accuracy"), rows, rows, rows)
    assert found["majority"]["accuracy"] == pytest.approx(9 / 17)
    assert found["tf-idf"]["accuracy"] == 1.0
    assert found["tf-idf of characters"]["accuracy"] == 1.0


def test_dictionary_gives_each_word_its_usual_tag() -> None:
    train = Examples([["in", "Rome"], ["in", "Rome"], ["Rome"]], [["O", "B"], ["O", "B"], ["O"]])
    test = Examples([["in", "Rome", "Oslo"]], [["O", "B", "O"]])
    found = evaluate(task("token_classification", "entity_f1"), train, test, test)
    assert found["dictionary"]["accuracy"] == 1.0
    assert found["majority"]["entity_f1"] == 0.0
