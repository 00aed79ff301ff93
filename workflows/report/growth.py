"""What a base was worth on a task while it was pretrained, and what more of it would bring. Pure.

The law is that of Hestness et al. 2017 (arXiv:1712.00409), an error that falls with a power of the
data towards a limit, of a head's score. Against it stands what more trials bring, by the expected
best of some (Dodge et al. 2019, arXiv:1909.03004, equation 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import curve_fit

from trainers.task_config import Metric
from workflows.ledger import Record

LEAST_POINTS = 4
"""One more than the law has unknowns: with fewer any curve fits."""

_MOST_EXPONENT = 3.0


@dataclass(frozen=True)
class Point:
    """A look."""

    tokens: int
    """That the base had seen."""
    score: float
    """Of the head above it, on validation rows."""


@dataclass(frozen=True)
class Law:
    """score = limit - gap * (tokens / unit) ** -exponent."""

    limit: float
    gap: float
    exponent: float
    unit: float
    """Tokens of the last look."""
    error: float
    """Mean distance of the looks from it."""

    def at(self, tokens: float) -> float:
        """The score that it expects."""
        return self.limit - self.gap * float((tokens / self.unit) ** -self.exponent)

    @property
    def gain_of_doubling(self) -> float:
        """What as many tokens again are expected to bring, as a difference of scores."""
        return self.at(2 * self.unit) - self.at(self.unit)


def metric_of(task: str, records: Sequence[Record]) -> Metric | None:
    """What a task is scored by, as its looks know it; None where there is none."""
    looks = (record for record in records if _is_look(record, task))
    return next((look.spec["task"]["metric"] for look in looks), None)


def points(task: str, metric: str, records: Sequence[Record]) -> list[Point]:
    """The looks at a task, by tokens, out of a run's records."""
    by_fingerprint = {record.fingerprint: record for record in records}
    found = []
    for record in records:
        base = by_fingerprint.get(record.inputs.get("base", ""))
        if _is_look(record, task) and base is not None and "tokens" in base.facts:
            found.append(Point(int(base.facts["tokens"]), float(record.facts["head"][metric])))
    return sorted(found, key=lambda point: point.tokens)


def _is_look(record: Record, task: str) -> bool:
    return record.kind == "probe" and record.name.rpartition(".")[0] == task


def law(looks: Sequence[Point]) -> Law | None:
    """The law of some looks; None for too few, or where none was found."""
    if len({look.tokens for look in looks}) < LEAST_POINTS:
        return None
    unit = float(looks[-1].tokens)
    tokens = np.array([look.tokens for look in looks]) / unit
    scores = np.array([look.score for look in looks])

    def expected(share: np.ndarray, limit: float, gap: float, exponent: float) -> np.ndarray:
        told: np.ndarray = limit - gap * share**-exponent
        return told

    start = (scores[-1], scores[-1] - scores[0], 0.5)
    bounds = ([-math.inf, -math.inf, 0.01], [math.inf, math.inf, _MOST_EXPONENT])
    try:
        (limit, gap, exponent), _ = curve_fit(expected, tokens, scores, p0=start, bounds=bounds)
    except RuntimeError:  # it does not converge
        return None
    error = np.abs(expected(tokens, limit, gap, exponent) - scores).mean()
    return Law(float(limit), float(gap), float(exponent), unit, float(error))


def expected_best(scores: Sequence[float], trials: int, sign: float) -> float:
    """The mean of the best of so many trials, drawn from those there are.

    Args:
        scores: of finished trials.
        trials: that are drawn, with repetition.
        sign: -1 where less is better.
    """
    merits = sorted(sign * score for score in scores)
    places = np.arange(len(merits) + 1) / len(merits)
    return sign * float(np.dot(merits, np.diff(places**trials)))


def gain_of_trials(scores: Sequence[float], sign: float) -> float | None:
    """What the second half of the trials brought, as a difference of scores; None for one trial."""
    if len(scores) < 2:
        return None
    all_of_them = len(scores)
    return expected_best(scores, all_of_them, sign) - expected_best(scores, all_of_them // 2, sign)


def told(looks: Sequence[Point], scores: Sequence[float], metric: str, sign: float) -> str:
    """What more tokens and more trials are expected to bring, in a sentence or two."""
    found = law(looks)
    parts = []
    if found is None:
        parts.append(
            f"{len(looks)} looks are too few for a law of its growth; {LEAST_POINTS} would do "
            "(pretrain.schedule.branches)"
        )
    else:
        gain = found.gain_of_doubling
        parts.append(
            f"as many tokens again are expected to change {metric} of a head by {gain:+.4f} "
            f"(a law of {len(looks)} looks, which lie {found.error:.4f} from it)"
        )
    of_trials = gain_of_trials(scores, sign)
    if of_trials is not None:
        parts.append(f"the second half of {len(scores)} trials brought {of_trials:+.4f}")
    return "; ".join(parts)
