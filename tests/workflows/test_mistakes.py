from typing import Any

import pytest
from reported import LABELS, ROWS

from trainers.examples import Examples
from trainers.task_types.base import Prediction
from workflows.report import mistakes
from workflows.report.mistakes import MOST_LABELS, OTHERS, Confusion, Mistakes, confusion


def task(kind: str) -> dict[str, Any]:
    """A task's section."""
    is_multi_label = kind == "multi_label"
    type_ = "classification" if is_multi_label else kind
    return {"type": type_, "multi_label": is_multi_label}


def worst(kind: str, rows: Any = None, most: int = 20, pairs: list[str] | None = None) -> Mistakes:
    """Of a model's answers to rows."""
    rows = ROWS[kind] if rows is None else rows
    examples = Examples([text for text, _, _ in rows], [label for _, label, _ in rows], pairs)
    said = [said for _, _, said in rows]
    return mistakes.worst(task(kind), LABELS.get(kind, []), examples, said, most)


def text(parts: list[tuple[str, bool]]) -> str:
    return "".join(f"[{part}]" if is_wrong else part for part, is_wrong in parts)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("classification", [("a terrible day", "bad", "good", 0.8), ("a day", "good", "bad", 0.6)]),
        (
            "multi_label",
            [
                ("dear and slow", "(nothing)", "cheap", 0.95),
                ("quick and good", "fast, good", "fast", 0.8),
            ],
        ),
        ("regression", [("one star", "1", "4.25", 3.25), ("four stars", "4", "3.5", 0.5)]),
        ("token_classification", [("in[Rome]", "Rome: B-LOC", "Rome: O", 0.75)]),
        ("question_answering", [("She was born in [Rome] in 1912.", "Rome", "in 1912", 0.0)]),
        ("generation", [("two and two", "four", "five", 2.5)]),
    ],
)
def test_worst_come_first_and_right_answers_do_not_come(
    kind: str, expected: list[tuple[str, str, str, float]]
) -> None:
    found = worst(kind)
    told = [(text(one.text), one.truth, one.said, one.score) for one in found.worst]
    assert told == [(*row[:3], pytest.approx(row[3])) for row in expected]
    assert found.wrong == len(expected)
    assert found.rows == len(ROWS[kind])


def test_no_more_are_shown_than_asked_for() -> None:
    rows = [(f"text {n}", "bad", Prediction("good", n / 100, [0, 1])) for n in range(50)]
    found = worst("classification", rows, most=20)
    assert [text(one.text) for one in found.worst] == [f"text {n}" for n in range(49, 29, -1)]
    assert found.wrong == 50


def test_long_texts_are_cut() -> None:
    rows = [("a" * 10_000, "b" * 10_000, Prediction("c" * 10_000, None, loss=1.0))]
    (one,) = worst("generation", rows, pairs=["d" * 10_000]).worst
    assert len(text(one.text)) == len(one.pair) == 280
    assert len(one.truth) == len(one.said) == 120
    assert one.said.endswith("c...")


def test_a_long_sentence_is_shown_around_its_worst_word() -> None:
    words = [f"w{n}" for n in range(200)]
    truth = ["O"] * 200
    said, scores = list(truth), [0.9] * 200
    said[100], said[101], scores[101], said[3], scores[3] = "B-LOC", "B-LOC", 0.95, "B-LOC", 0.5
    (one,) = worst("token_classification", [(words, truth, Prediction(said, scores))]).worst
    assert one.score == 0.95
    assert [part for part, is_wrong in one.text if is_wrong] == ["w100", "w101"]
    assert one.text[0] == one.text[-1] == ("...", False)
    assert len(one.text) == 42
    assert one.said == "w100: B-LOC, w101: B-LOC"


def test_a_long_passage_is_shown_around_its_answer() -> None:
    passage = "x" * 1000 + "Rome" + "y" * 1000
    row = (passage, {"answers": ["Rome"], "start": 1000}, Prediction("", None))
    (one,) = worst("question_answering", [row], pairs=["where?"]).worst
    shown = text(one.text)
    assert shown.startswith("... xxx")
    assert shown.endswith("yyy ...")
    assert "x[Rome]y" in shown
    assert len(shown) < 300
    assert (one.said, one.pair) == ("(nothing)", "where?")


def test_a_decoder_s_unmeasured_answer_has_no_score() -> None:
    (one,) = worst("generation", [("a", "b", Prediction("c", None))]).worst
    assert one.score is None


def test_matrix_counts_texts_and_words() -> None:
    truth = ["a", "a", "b"]
    said = [Prediction(label, 1.0) for label in ("a", "b", "b")]
    found = confusion(task("classification"), truth, said)
    assert found == Confusion(["a", "b"], [[1, 1], [0, 1]])
    assert found.most_frequent == ("a", "b", 1)
    of_words = confusion(
        task("token_classification"), [["O", "B"], ["O"]], [Prediction(["O", "O"], []), said[0]]
    )
    assert of_words is not None
    assert (of_words.labels, of_words.counts) == (
        ["B", "O", "a"],
        [[0, 1, 0], [0, 1, 1], [0, 0, 0]],
    )


def test_a_model_that_is_never_wrong_confuses_nothing() -> None:
    found = confusion(task("classification"), ["a"], [Prediction("a", 1.0)])
    assert found is not None
    assert found.most_frequent is None


def test_rare_labels_stand_together() -> None:
    names = [f"l{n:02d}" for n in range(20)]
    truth = [name for n, name in enumerate(names) for _ in range(30 - n)]
    found = confusion(task("classification"), truth, [Prediction(name, 1.0) for name in truth])
    assert found is not None
    assert found.labels == [*names[:MOST_LABELS], OTHERS]
    assert sum(map(sum, found.counts)) == len(truth)
    assert found.counts[-1][-1] == sum(30 - n for n in range(MOST_LABELS, 20))


@pytest.mark.parametrize("kind", ["multi_label", "regression", "question_answering", "generation"])
def test_rows_without_one_label_each_have_no_matrix(kind: str) -> None:
    rows = ROWS[kind]
    said = [said for _, _, said in rows]
    assert confusion(task(kind), [label for _, label, _ in rows], said) is None
