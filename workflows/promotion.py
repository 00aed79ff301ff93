"""Does a new model replace the champion? Pure."""

import math
from dataclasses import dataclass

from workflows.task_section import PromoteConfig


@dataclass(frozen=True)
class Evaluation:
    """A model's score on the test rows."""

    model: str
    score: float


@dataclass(frozen=True)
class Promote:
    """It does."""

    reason: str


@dataclass(frozen=True)
class Keep:
    """It does not."""

    reason: str


def decide(
    challenger: Evaluation,
    champion: Evaluation | None,
    *,
    constant: float | None,
    rule: PromoteConfig,
    lower_is_better: bool = False,
) -> Promote | Keep:
    """Promote what is better on the same rows; a tie or an unusable score changes nothing.

    Args:
        challenger: the new model.
        champion: the model to beat, evaluated on the same rows; None where there is none.
        constant: what always giving the same answer scores: the most frequent label, or the mean;
            None where that has no score.
        rule: the user's.
        lower_is_better: of the scores.
    """
    sign = -1.0 if lower_is_better else 1.0
    if not math.isfinite(challenger.score):
        return Keep(f"{challenger.model} scores {challenger.score}, which is no number")
    if constant is not None and sign * challenger.score <= sign * constant:
        return Keep(
            f"{challenger.model} scores {challenger.score:.4f}, no better than always giving the "
            f"same answer ({constant:.4f})"
        )
    if champion is None:
        against = "" if constant is None else f" against {constant:.4f} of always the same answer"
        return Promote(f"the first model: {challenger.score:.4f}{against}")
    if not math.isfinite(champion.score):
        return Promote(f"{champion.model} scores {champion.score}, which is no number")
    gain = sign * (challenger.score - champion.score)
    compared = f"{challenger.score:.4f} against {champion.score:.4f} of {champion.model}"
    if gain <= rule.min_improvement:
        return Keep(
            f"{compared}: a gain of {gain:+.4f}, needed is more than {rule.min_improvement}"
        )
    return Promote(f"{compared}: {gain:+.4f}")
