"""What a base was worth while it was pretrained: the law, and trials beside it."""

from pathlib import Path

import pytest
from reported import Story, search

from workflows.report import growth
from workflows.report.growth import Law, Point
from workflows.report.page import render

TRUE = Law(limit=0.9, gap=0.2, exponent=0.5, unit=8e6, error=0.0)
TOKENS = [500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000]


def test_a_law_is_found_again_and_tells_what_doubling_brings() -> None:
    looks = [Point(tokens, TRUE.at(tokens)) for tokens in TOKENS]
    found = growth.law(looks)
    assert found is not None
    assert (found.limit, found.gap, found.exponent) == pytest.approx((0.9, 0.2, 0.5), abs=1e-4)
    assert found.gain_of_doubling == pytest.approx(0.2 * (1 - 2**-0.5), abs=1e-4)
    assert found.error < 1e-6


def test_an_error_that_falls_has_a_law_too() -> None:
    falling = Law(limit=0.1, gap=-0.4, exponent=1.0, unit=8e6, error=0.0)
    found = growth.law([Point(tokens, falling.at(tokens)) for tokens in TOKENS])
    assert found is not None
    assert found.gain_of_doubling == pytest.approx(-0.2, abs=1e-3)


def test_too_few_looks_have_no_law() -> None:
    looks = [Point(tokens, TRUE.at(tokens)) for tokens in TOKENS[:3]]
    assert growth.law(looks) is None
    assert growth.law([*looks, looks[0]]) is None
    told = growth.told(looks, [0.5], "accuracy", 1.0)
    assert told == (
        "3 looks are too few for a law of its growth; 4 would do (pretrain.schedule.branches)"
    )


def test_expected_best_is_that_of_all_draws() -> None:
    scores = [0.1, 0.4, 0.2]
    draws = [max(a, b) for a in scores for b in scores]
    assert growth.expected_best(scores, 2, 1.0) == pytest.approx(sum(draws) / 9)
    least = [min(a, b) for a in scores for b in scores]
    assert growth.expected_best(scores, 2, -1.0) == pytest.approx(sum(least) / 9)
    assert growth.expected_best(scores, 1, -1.0) == pytest.approx(sum(scores) / 3)
    assert growth.gain_of_trials([0.5], 1.0) is None
    assert growth.gain_of_trials([0.5, 0.5], 1.0) == 0.0


def test_the_report_shows_looks_and_what_more_would_bring(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.pretrained()
    story.looks("tone", {tokens: TRUE.at(tokens) for tokens in TOKENS})
    story.task("tone", "classification", trials=search("accuracy", 9))
    story.task("places", "token_classification")
    page = render(*story.told)
    assert page.count("<h3>While the base was pretrained</h3>") == 1
    assert "as many tokens again are expected to change accuracy of a head by +0.0586" in page
    assert "the second half of 9 trials brought +" in page
    assert "0.9 after" not in page
    assert f"{TRUE.at(TOKENS[0]):.4g} after 500,000 tokens" in page


def test_looks_are_shown_while_pretraining_goes_on(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.step("tone.data", "data")
    story.step("pretrain", "pretrain")
    story.looks("tone", {tokens: TRUE.at(tokens) for tokens in TOKENS[:2]})
    page = render(*story.told)
    assert "While the base was pretrained" in page
    assert "2 looks are too few for a law of its growth; 4 would do" in page
    assert "It did not get far enough" not in page
