import pytest

from workflows.promotion import Evaluation, Keep, Promote, decide
from workflows.task_section import PromoteConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("challenger", "champion", "needed", "expected"),
    [
        (0.80, None, 0.0, Promote),
        (0.50, None, 0.0, Keep),  # as good as the majority is not good
        (0.40, None, 0.0, Keep),
        (NAN, None, 0.0, Keep),
        (0.80, 0.79, 0.0, Promote),
        (0.80, 0.80, 0.0, Keep),  # a tie moves nothing
        (0.79, 0.80, 0.0, Keep),
        (0.80, 0.79, 0.02, Keep),
        (0.82, 0.79, 0.02, Promote),
        (NAN, 0.79, 0.0, Keep),
        (0.80, NAN, 0.0, Promote),
        (0.45, NAN, 0.0, Keep),
    ],
)
def test_only_what_is_better_on_the_same_rows_is_promoted(
    challenger: float, champion: float | None, needed: float, expected: type
) -> None:
    verdict = decide(
        Evaluation("new", challenger),
        None if champion is None else Evaluation("old", champion),
        constant=0.5,
        rule=PromoteConfig(min_improvement=needed),
    )
    assert type(verdict) is expected
    assert verdict.reason


@pytest.mark.parametrize(
    ("challenger", "champion", "expected"),
    [
        (0.4, None, Promote),
        (0.5, None, Keep),
        (0.6, None, Keep),
        (0.3, 0.4, Promote),
        (0.45, 0.4, Keep),
    ],
)
def test_lower_is_better_where_the_metric_says_so(
    challenger: float, champion: float | None, expected: type
) -> None:
    verdict = decide(
        Evaluation("new", challenger),
        None if champion is None else Evaluation("old", champion),
        constant=0.5,
        rule=PromoteConfig(min_improvement=0.05),
        lower_is_better=True,
    )
    assert type(verdict) is expected
