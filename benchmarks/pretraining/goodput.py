"""What stalls and recoveries cost on many GPUs: arithmetic, no measurement."""

import math
from dataclasses import dataclass

GPU_HOURS_PER_FAILURE = 50_700
"""Llama 3 405B: 419 unexpected interruptions of 16,384 GPUs in 54 days. Source: arXiv:2407.21783,
table 5."""

GPUS = (64, 1024, 16_384)


@dataclass(frozen=True)
class Goodput:
    """What is best at one number of GPUs."""

    gpus: int
    failure_every_s: float
    checkpoint_every_s: float
    share: float
    """Of the time in which training gets on."""


def goodput(gpus: int, *, stall_s: float, recovery_s: float) -> Goodput:
    """The share of time that is not lost, at the interval between checkpoints that loses least.

    Lost are the stall d of a checkpoint each interval T, half an interval at each failure, which
    come every M, and the recovery R: d/T + T/2M + R/M, least at T = sqrt(2 d M). Source: Young
    1974; Daly 2006, doi:10.1016/j.future.2004.11.016, of which this is the first order.

    Args:
        gpus: that train together; any failure stops them all.
        stall_s: training stands still that long for one checkpoint; above zero.
        recovery_s: from a failure to the next new step.
    """
    failure_every_s = GPU_HOURS_PER_FAILURE * 3600 / gpus
    interval_s = math.sqrt(2 * stall_s * failure_every_s)
    lost = stall_s / interval_s + interval_s / (2 * failure_every_s) + recovery_s / failure_every_s
    return Goodput(gpus, failure_every_s, interval_s, 1 - lost)
