from workflows.report import Score, scores

RESULT = {
    "metric": "accuracy",
    "seeds": {
        "pretrained": [{"accuracy": 0.80}, {"accuracy": 0.82}, {"accuracy": 0.84}],
        "scratch": [{"accuracy": 0.70}],
    },
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
