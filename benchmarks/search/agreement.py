"""Whether the subjects found the same: what is compared, and how far it may differ."""

import statistics
from collections.abc import Sequence
from typing import Any

Run = dict[str, Any]
"""The JSON line of one run."""
Runs = dict[tuple[str, str], list[Run]]
"""(regime, subject) -> its runs, in order."""

OURS, EXPERT, TRAINER = "pretune", "expert", "Trainer"
TOLERANCE = 1e-3
"""Between Pretune and the expert, of a trial's score, and of its loss as a share of it."""
TRAINER_TOLERANCE = 0.05
"""Between Pretune and the Trainer, whose dropout is another: of best and mean scores."""
TRAINER_LOSS_TOLERANCE = 0.1
"""Of the mean training loss of a task's trials, as a share of it."""
QUICK_TRAINER_TOLERANCE = 0.3
"""Of a few trials on a few rows: whether the Trainer trains the task at all."""


class DisagreementError(RuntimeError):
    """Subjects that must find the same do not."""


def require_agreement(regime: str, runs: Runs, *, is_quick: bool) -> None:
    """Compare the last run of each peer with Pretune's.

    Raises:
        DisagreementError: says which trial or task, and both values.
    """
    ours = runs[regime, OURS][-1]
    if (regime, EXPERT) in runs:
        _require_equal(regime, ours, runs[regime, EXPERT][-1])
    if (regime, TRAINER) in runs:
        tolerance = QUICK_TRAINER_TOLERANCE if is_quick else TRAINER_TOLERANCE
        _require_alike(regime, ours, runs[regime, TRAINER][-1], tolerance)


def largest_differences(ours: Run, theirs: Run) -> tuple[float, float]:
    """Of all trials' scores, and of their losses as a share of them."""
    pairs = list(_pairs(ours, theirs))
    return (
        max(abs(one["score"] - other["score"]) for _, one, other in pairs),
        max(_loss_difference(one, other) for _, one, other in pairs),
    )


def best_mean(run: Run, task: str) -> tuple[float, float]:
    """The best and the mean score of a task's trials."""
    scores = [trial["score"] for trial in run["trials"] if trial["task"] == task]
    return max(scores), statistics.mean(scores)


def mean_loss(run: Run, task: str) -> float:
    """Of the last epochs of a task's trials, in training."""
    return statistics.mean(trial["loss"] for trial in run["trials"] if trial["task"] == task)


def tasks_of(run: Run) -> list[str]:
    """The tasks, in their order."""
    return list(dict.fromkeys(trial["task"] for trial in run["trials"]))


def _require_equal(regime: str, ours: Run, theirs: Run) -> None:
    for key, one, other in _pairs(ours, theirs):
        is_equal = abs(one["score"] - other["score"]) <= TOLERANCE
        if not (is_equal and _loss_difference(one, other) <= TOLERANCE):  # NaN is refused, too
            raise DisagreementError(
                f"{regime}, {key}: {OURS} has score {one['score']} and loss {one['loss']}, "
                f"the {EXPERT} {other['score']} and {other['loss']}"
            )


def _require_alike(regime: str, ours: Run, theirs: Run, tolerance: float) -> None:
    if set(_by_key(ours)) != set(_by_key(theirs)):
        raise DisagreementError(f"{regime}: {OURS} and the {TRAINER} tried other points")
    for task in tasks_of(ours):
        pairs = zip(("best", "mean"), best_mean(ours, task), best_mean(theirs, task), strict=True)
        compared = [(f"{name} score", one, other, tolerance) for name, one, other in pairs]
        losses = mean_loss(ours, task), mean_loss(theirs, task)
        share = max(tolerance, TRAINER_LOSS_TOLERANCE)
        compared.append(("mean loss", *losses, share * losses[0]))
        for name, one, other, apart in compared:
            if not abs(one - other) <= apart:
                raise DisagreementError(
                    f"{regime}, {task}: the {name} of {OURS} is {one:.4f}, that of the "
                    f"{TRAINER} {other:.4f}; more than {apart:.4f} apart"
                )


def _loss_difference(one: Run, other: Run) -> float:
    return float(abs(one["loss"] - other["loss"]) / abs(other["loss"]))


def _pairs(ours: Run, theirs: Run) -> Sequence[tuple[str, Run, Run]]:
    one, other = _by_key(ours), _by_key(theirs)
    if set(one) != set(other):
        raise DisagreementError(f"trials differ: {sorted(set(one) ^ set(other))}")
    return [(key, one[key], other[key]) for key in one]


def _by_key(run: Run) -> dict[str, Run]:
    return {
        f"{trial['task']}, learning rate {trial['point']['learning_rate']:g}, "
        f"{trial['point']['epochs']} epochs": trial
        for trial in run["trials"]
    }
