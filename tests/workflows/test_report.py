from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workflows.report import Score, fractions, render, scores

RESULT = {
    "metric": "accuracy",
    "lower_is_better": False,
    "seeds": {
        "pretrained": [{"accuracy": 0.80}, {"accuracy": 0.82}, {"accuracy": 0.84}],
        "scratch": [{"accuracy": 0.70}],
    },
    "label_fractions": [
        {
            "fraction": 0.1,
            "rows": 9,
            "baselines": {"majority": {"accuracy": 0.5}, "tf-idf": {"accuracy": 0.55}},
            "pretrained": [{"accuracy": 0.6}],
            "scratch": [],
        },
        {
            "fraction": 1.0,
            "rows": 90,
            "baselines": {"majority": {"accuracy": 0.5}, "tf-idf": {"accuracy": 0.83}},
            "pretrained": [{"accuracy": 0.80}, {"accuracy": 0.82}, {"accuracy": 0.84}],
            "scratch": [{"accuracy": 0.70}],
        },
    ],
    "baselines": {"majority": {"accuracy": 0.5}, "tf-idf": {"accuracy": 0.83}},
}


def test_scores_stand_best_first_whoever_wins() -> None:
    found = scores(RESULT)
    assert [score.method for score in found] == [
        "tf-idf",
        "fine-tuned from the base",
        "same network from random weights",
        "majority",
    ]


def test_mean_and_spread_are_over_seeds() -> None:
    tuned = scores(RESULT)[1]
    assert tuned.trainings == 3
    assert abs(tuned.mean - 0.82) < 1e-12
    assert tuned.spread is not None
    assert abs(tuned.spread - 0.02) < 1e-12


def test_one_training_has_no_spread() -> None:
    assert scores(RESULT)[2] == Score("same network from random weights", 0.70, None, 1)


def test_task_without_control_has_no_line_for_it() -> None:
    without = {**RESULT, "seeds": {**RESULT["seeds"], "scratch": []}}  # type: ignore[dict-item]
    assert len(scores(without)) == 3


def finished(**facts: Any) -> Any:
    record = SimpleNamespace(facts=facts, elapsed_s=1.0, fingerprint="f" * 64)
    return SimpleNamespace(record=record, output=Path("none"))


def test_what_became_of_the_documents_is_told() -> None:
    steps = {
        "corpus": finished(train=12345, duplicates=67, malformed=0),
        "tokens": finished(tokens=890123, padding_share=0.000806),
    }
    page = render("p", list(steps), steps, {})
    for name, value in [
        ("documents to train on", "12,345"),
        ("duplicates left out", "67"),
        ("lines, rows and files that could not be read", "0"),
        ("share of padding", "0.000806"),
    ]:
        assert f'<tr><td>{name}</td><td class="n">{value}</td></tr>' in page
    assert "<h2>Data</h2>" not in render("p", list(steps), {}, {})


def test_shares_of_labels_are_told_by_number_with_the_base_and_without() -> None:
    (few, few_scores), (all_rows, all_scores) = fractions(RESULT)
    assert (few, all_rows) == (9, 90)
    assert few_scores == [
        Score("fine-tuned from the base", 0.6, None, 1),
        Score("tf-idf", 0.55, None, 1),
    ]
    assert [score.method for score in all_scores] == [
        "fine-tuned from the base",
        "same network from random weights",
        "tf-idf",
    ]
