import re
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from workflows.promote_config import PromoteConfig
from workflows.promotion import Evaluation, Keep, Promote, Rival, decide
from workflows.significance import Gain
from workflows.task_section import PipelineTask

NAN = float("nan")
RULE = PromoteConfig()


def evaluation(score: float, model: str = "new", **other: Any) -> Evaluation:
    of = {"type": "classification", "labels": ("bad", "good"), "test": "rows"} | other
    return Evaluation(model, score, **of)


def rival(score: float, gain: float | None, p: float = 0.001, **other: Any) -> Rival:
    found = None if gain is None else Gain(gain, gain - 0.01, gain + 0.01, p, 100)
    return Rival(evaluation(score, "old", **other), found)


CONSTANT = rival(0.5, 0.3)


def decided(
    score: float = 0.8,
    *,
    constant: Rival = CONSTANT,
    scratch: Rival | None = None,
    champion: Rival | None = None,
    rule: PromoteConfig = RULE,
) -> Promote | Keep:
    return decide(
        evaluation(score), constant=constant, scratch=scratch, champion=champion, rule=rule
    )


@pytest.mark.parametrize(
    ("champion", "rule", "expected", "reason"),
    [
        (rival(0.7, 0.1), RULE, Promote, r"0\.8000 against 0\.7000 of old, a gain of \+0\.1000"),
        (rival(0.7, 0.1, p=0.05), RULE, Promote, "on 100 rows, p 0.05"),
        (rival(0.7, 0.1, p=0.06), RULE, Keep, "luck with these rows: p 0.06 is above 0.05"),
        (rival(0.7, 0.1, p=0.06), PromoteConfig(confidence=0.9), Promote, "p 0.06"),
        (rival(0.7, 0.1, p=1.0), PromoteConfig(confidence=0.0), Promote, "gain"),
        (rival(0.8, 0.0, p=1.0), PromoteConfig(confidence=0.0), Keep, r"more than \+0"),
        (rival(0.81, -0.01), RULE, Keep, r"needed is more than \+0"),
        (rival(0.7, 0.1), PromoteConfig(min_improvement=0.1), Keep, r"more than \+0\.1"),
        (rival(0.81, -0.01), PromoteConfig(mode="non_inferior", margin=0.02), Promote, "-0.01"),
        (rival(0.83, -0.03), PromoteConfig(mode="non_inferior", margin=0.02), Keep, "than -0.02"),
        (rival(0.7, 0.1, type="regression"), RULE, Keep, "another task: regression"),
        (rival(0.7, 0.1, labels=("bad",)), RULE, Keep, "knows other labels: bad; .* bad, good"),
        (rival(0.7, 0.1, test="others"), RULE, Keep, "tested on other rows"),
        (rival(NAN, None), RULE, Keep, "old scores nan, which is no number"),
        (rival(0.7, None), RULE, Keep, "not compared row by row"),
        (rival(0.7, 0.1, unit="4 of x"), RULE, Keep, "of other tokens, .* --override"),
    ],
)
def test_only_what_is_proved_better_on_the_same_rows_replaces_the_champion(
    champion: Rival, rule: PromoteConfig, expected: type, reason: str
) -> None:
    verdict = decided(champion=champion, rule=rule)
    assert type(verdict) is expected
    assert re.search(reason, verdict.reason), verdict.reason


@pytest.mark.parametrize(
    ("constant", "scratch", "expected"),
    [
        (rival(0.5, 0.3), None, Promote),
        (rival(0.8, 0.0), None, Keep),  # as good as the majority is not good
        (rival(0.9, -0.1), None, Keep),
        (rival(0.7, 0.1, p=0.2), None, Keep),
        (rival(NAN, None), None, Promote),  # a constant answer has no such score
        (rival(0.5, 0.3), rival(0.8, 0.0, p=1.0), Promote),  # no better than without the base
        (rival(0.5, 0.3), rival(0.805, -0.005, p=1.0), Promote),  # may be luck
        (rival(0.5, 0.3), rival(0.83, -0.03, p=1.0), Keep),
    ],
)
def test_a_first_model_is_better_than_a_constant_and_not_proved_worse_than_random_weights(
    constant: Rival, scratch: Rival | None, expected: type
) -> None:
    verdict = decided(constant=constant, scratch=scratch)
    assert type(verdict) is expected
    assert verdict.reason


def test_a_score_that_is_no_number_changes_nothing() -> None:
    assert decided(NAN) == Keep("new scores nan, which is no number")


def test_a_challenger_no_better_than_a_constant_is_kept_out_whatever_the_champion() -> None:
    rule = PromoteConfig(mode="non_inferior", margin=0.5)
    verdict = decided(constant=rival(0.8, 0.0), champion=rival(0.9, -0.1), rule=rule)
    assert isinstance(verdict, Keep)


def test_random_weights_matter_to_the_first_model_alone() -> None:
    scratch = rival(0.9, -0.1)
    assert isinstance(decided(scratch=scratch), Keep)
    assert isinstance(decided(scratch=scratch, champion=rival(0.7, 0.1)), Promote)


def test_models_without_labels_are_compared() -> None:
    challenger = replace(evaluation(0.8), type="regression", labels=())
    champion = rival(0.7, 0.1, type="regression", labels=())
    verdict = decide(challenger, constant=CONSTANT, scratch=None, champion=champion, rule=RULE)
    assert isinstance(verdict, Promote)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"mode": "non_inferior"}, "needs a margin"),
        ({"margin": 0.1}, "margin goes with mode: non_inferior"),
        ({"mode": "non_inferior", "margin": 0.1, "min_improvement": 0.1}, "mode: superior"),
        ({"test": "mcnemar", "min_improvement": 0.1}, "use bootstrap"),
        ({"test": "randomization", "mode": "non_inferior", "margin": 0.1}, "use bootstrap"),
        ({"confidence": 1.0}, "less than 1"),
        ({"resamples": 10}, "take 20 or more"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        PromoteConfig.model_validate(section)


@pytest.mark.parametrize(
    ("kind", "metric", "is_allowed"),
    [
        ("classification", "accuracy", True),
        ("classification", "macro_f1", False),
        ("token_classification", "accuracy", False),  # a share of words, not of rows
        ("question_answering", "exact_match", True),
    ],
)
def test_mcnemar_goes_with_shares_of_rows(kind: str, metric: str, is_allowed: bool) -> None:
    data = {"path": "rows.csv", "split": {"test": 0.2, "validation": 0.2}}
    if kind == "question_answering":
        data["text_pair"] = "question"
    section = {
        "type": kind,
        "metric": metric,
        "data": data,
        "search": {"trials": 1, "space": {"learning_rate": [0.1]}},
        "promote": {"test": "mcnemar"},
    }
    if is_allowed:
        assert PipelineTask.model_validate(section).promote.test == "mcnemar"
    else:
        with pytest.raises(ValidationError, match="mcnemar"):
            PipelineTask.model_validate(section)
