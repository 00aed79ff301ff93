"""Test scores by method, out of a task's `final.json`; what the base was worth. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

_ORIGINS = {
    "pretrained": "fine-tuned from the base",
    "scratch": "same network from random weights",
}


@dataclass(frozen=True)
class Score:
    """A method's test score, with its spread where it was trained with several seeds."""

    method: str
    mean: float
    spread: float | None
    trainings: int

    @property
    def told(self) -> str:
        """The mean, with its spread where there is one."""
        return f"{self.mean:.4f}" + ("" if self.spread is None else f" ± {self.spread:.4f}")


@dataclass(frozen=True)
class Worth:
    """What a model gained by its base, against the same network from random weights."""

    gain: float
    """More is better, also where less of the metric is."""
    tuned: Score
    control: Score

    @property
    def is_within_spread(self) -> bool:
        """Whether the seeds of one of both differ as much as both do."""
        spreads = [one.spread for one in (self.tuned, self.control) if one.spread is not None]
        return bool(spreads) and abs(self.gain) <= max(spreads)


def scores(result: Mapping[str, Any]) -> list[Score]:
    """Test scores by method, best first, out of a `final.json`."""
    found = [score for origin in _ORIGINS if (score := _of_origin(result, origin))]
    found += baselines(result)
    return sorted(found, key=lambda score: score.mean, reverse=not result["lower_is_better"])


def baselines(result: Mapping[str, Any]) -> list[Score]:
    """Those of methods without a network, best first."""
    metric = result["metric"]
    found = [
        Score(name, scored[metric], None, 1)
        for name, scored in result["baselines"].items()
        if metric in scored  # the loss of a true answer is a model's alone
    ]
    return sorted(found, key=lambda score: score.mean, reverse=not result["lower_is_better"])


def tuned(result: Mapping[str, Any]) -> Score | None:
    """That of the base, fine-tuned."""
    return _of_origin(result, "pretrained")


def worth(result: Mapping[str, Any]) -> Worth | None:
    """What the base was worth; None where there was no control."""
    own, control = tuned(result), _of_origin(result, "scratch")
    if own is None or control is None:
        return None
    sign = -1.0 if result["lower_is_better"] else 1.0
    return Worth(sign * (own.mean - control.mean), own, control)


def fractions(result: Mapping[str, Any]) -> list[tuple[int, list[Score]]]:
    """Number of labels, and test scores, out of a `final.json`.

    With the base, without, and of the method that is best of those without a network, given all
    labels.
    """
    metric, found = result["metric"], []
    rivals = [score.method for score in baselines(result)]
    for line in result["label_fractions"]:
        of_line = [
            _over_seeds(told, [of_seed[metric] for of_seed in line[origin]])
            for origin, told in _ORIGINS.items()
            if line[origin]
        ]
        of_line += [
            Score(name, line["baselines"][name][metric], None, 1)
            for name in rivals[:1]
            if metric in line["baselines"].get(name, {})
        ]
        found.append((line["rows"], of_line))
    return found


def _of_origin(result: Mapping[str, Any], origin: str) -> Score | None:
    of_seeds = [of_seed[result["metric"]] for of_seed in result["seeds"][origin]]
    return _over_seeds(_ORIGINS[origin], of_seeds) if of_seeds else None


def _over_seeds(method: str, values: Sequence[float]) -> Score:
    spread = stdev(values) if len(values) > 1 else None
    return Score(method, fmean(values), spread, len(values))
