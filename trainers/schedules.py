"""The learning rate by step, and the legs in which a training with branches runs. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from trainers.pretrain_config import ScheduleConfig


@dataclass(frozen=True)
class Leg:
    """Optimizer steps that are run one after another."""

    start_step: int
    """What it goes on from: the trunk's state after so many steps."""

    stop_step: int
    """One behind its last step, counted from the beginning of training."""

    is_branch: bool
    """Whether it decays to a model of its own, and nothing goes on from it."""


def legs(config: ScheduleConfig, total_steps: int) -> list[Leg]:
    """The legs of a training in the order in which they are run.

    The trunk's legs follow each other without a gap and are `total_steps` long together. A branch
    stands between the leg that ends where it leaves the trunk and the one that goes on from there.

    Raises:
        ValueError: there are too few steps to tell branches apart, or for one to decay.
    """
    found: list[Leg] = []
    trunk = 0
    for start, stop in config.branch_spans(total_steps):
        found += [Leg(trunk, start, is_branch=False), Leg(start, stop, is_branch=True)]
        trunk = start
    return [*found, Leg(trunk, total_steps, is_branch=False)]


def learning_rate(
    config: ScheduleConfig,
    *,
    peak: float,
    total_steps: int,
    leg: Leg | None = None,
    warmup_steps: int | None = None,
) -> Callable[[int], float]:
    """The learning rate by step: linear warm-up to `peak`, then the configured shape.

    Source of the cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 with one cycle; of the
    decay by 1 - sqrt: Haegele et al. 2024, arXiv:2405.18392, eq. 2.

    Args:
        config: the user's section.
        peak: highest rate.
        total_steps: of the trunk.
        leg: a branch decays over all its steps; the trunk's legs, and None, take the trunk's rate.
        warmup_steps: where they are no share of the total.
    """
    if leg is not None and leg.is_branch:
        first, last = leg.start_step, leg.stop_step
        return lambda step: peak * _decayed(config, (step - first) / (last - first))
    warmup = round(config.warmup * total_steps) if warmup_steps is None else warmup_steps

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * _share(config, step, warmup, total_steps)

    return rate


def _share(config: ScheduleConfig, step: int, warmup_steps: int, total_steps: int) -> float:
    """Of the peak, behind the warm-up."""
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match config.name:
        case "cosine":
            return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return config.floor + (1 - config.floor) * (1 - progress)
        case "constant":
            return 1.0
        case "wsd":
            decay_steps = max(1, round(config.decay_share * total_steps))
            return _decayed(config, (step - (total_steps - decay_steps)) / decay_steps)


def _decayed(config: ScheduleConfig, progress: float) -> float:
    """Of the peak, in the decay of `wsd`; before it `progress` is negative."""
    progress = max(0.0, progress)
    gone = progress if config.decay_shape == "linear" else math.sqrt(progress)
    return config.floor + (1 - config.floor) * (1 - gone)
