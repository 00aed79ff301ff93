"""Does a new model replace the champion? Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from workflows.promote_config import RuleConfig
from workflows.significance import Gain

BY_HAND = "by hand: pretune models promote {} --override --because WHY"
_HINT = BY_HAND.format("NAME@VERSION")


@dataclass(frozen=True)
class Evaluation:
    """What a model was found to be worth, and on what."""

    model: str
    """For people."""
    score: float
    """The task's metric; NaN where the rows do not define it."""
    type: str
    """Of its task, for people."""
    labels: tuple[str, ...]
    """That it can say; none where they are numbers or texts."""
    test: str
    """Digest of the test rows."""
    unit: str = ""
    """What the score is counted in, where that is the model's own: losses per token compare where
    tokens are the same."""


@dataclass(frozen=True)
class Rival:
    """What a new model is compared with, row by row."""

    evaluation: Evaluation
    gain: Gain | None
    """Of the new model over it; None where they cannot be compared."""


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
    *,
    constant: Rival,
    scratch: Rival | None,
    champion: Rival | None,
    rule: RuleConfig,
    broken: str | None = None,
) -> Promote | Keep:
    """Promote what is proved better on the same rows; what cannot be compared changes nothing.

    Args:
        challenger: the new model.
        constant: what always giving the same answer is worth: the most frequent label, or the mean.
            Each new model must be better, whatever the mode.
        scratch: the same network from random weights, where there is one: a first model must not
            be proved worse.
        champion: the model to beat; None where there is none.
        rule: the user's.
        broken: what the new model does not keep to, of the rule's guards.
    """
    verdict = _compared_with_all(challenger, constant, scratch, champion, rule)
    if broken is not None and isinstance(verdict, Promote):
        return Keep(f"{verdict.reason}; but {broken}")
    return verdict


def needed_gain(rule: RuleConfig) -> float:
    """What the gain over a champion must be greater than."""
    return rule.min_improvement if rule.margin is None else -rule.margin


def _compared_with_all(
    challenger: Evaluation,
    constant: Rival,
    scratch: Rival | None,
    champion: Rival | None,
    rule: RuleConfig,
) -> Promote | Keep:
    if not math.isfinite(challenger.score):
        return Keep(f"{challenger.model} scores {challenger.score}, which is no number")
    if champion is not None and (obstacle := next(_obstacles(challenger, champion), None)):
        return Keep(obstacle)
    if math.isfinite(constant.evaluation.score):
        failing = _not_proved(challenger, constant, needed=0.0, confidence=rule.confidence)
        if failing:
            return Keep(failing)
    if champion is None:
        return _first(challenger, constant, scratch)
    failing = _not_proved(
        challenger, champion, needed=needed_gain(rule), confidence=rule.confidence
    )
    return Keep(failing) if failing else Promote(_compared(challenger, champion))


def _first(challenger: Evaluation, constant: Rival, scratch: Rival | None) -> Promote | Keep:
    if scratch is not None and scratch.gain is not None and scratch.gain.high < 0:
        return Keep(f"{_compared(challenger, scratch)}: the base has done harm")
    score = constant.evaluation.score
    against = f" against {score:.4f} of {constant.evaluation.model}" if math.isfinite(score) else ""
    return Promote(f"the first model: {challenger.score:.4f}{against}")


def _obstacles(challenger: Evaluation, champion: Rival) -> Iterator[str]:
    """Why the two cannot be compared."""
    other = champion.evaluation
    if other.type != challenger.type:
        told = f"{other.model} is of another task: {other.type}, not {challenger.type}"
        yield f"{told}; {_HINT}"
    elif other.labels != challenger.labels:
        yield (
            f"{other.model} knows other labels: {', '.join(other.labels)}; "
            f"the new model has {', '.join(challenger.labels)}; {_HINT}"
        )
    elif other.test != challenger.test:
        yield f"{other.model} was tested on other rows; {_HINT}"
    elif other.unit != challenger.unit:
        yield f"the loss of {other.model} is of other tokens, or of longer answers; {_HINT}"
    elif not math.isfinite(other.score):
        yield f"{other.model} scores {other.score}, which is no number; {_HINT}"
    elif champion.gain is None:
        yield f"{other.model} was not compared row by row; {_HINT}"


def _not_proved(
    challenger: Evaluation, rival: Rival, *, needed: float, confidence: float
) -> str | None:
    """Why the gain is no proof; None where it is one."""
    gain = rival.gain
    compared = _compared(challenger, rival)
    if gain is None or not gain.exceeds(needed):
        return f"{compared}, needed is more than {needed:+g}"
    if gain.p > 1.0 - confidence:
        return (
            f"{compared}, which may be luck with these rows: p {gain.p:.3g} is above "
            f"{1.0 - confidence:.3g}"
        )
    return None


def _compared(challenger: Evaluation, rival: Rival) -> str:
    scores = f"{challenger.score:.4f} against {rival.evaluation.score:.4f}"
    told = f"{scores} of {rival.evaluation.model}"
    gain = rival.gain
    if gain is None:
        return told
    interval = f"[{gain.low:+.4f}, {gain.high:+.4f}]"
    return f"{told}, a gain of {gain.value:+.4f} {interval} on {gain.rows} rows, p {gain.p:.3g}"
