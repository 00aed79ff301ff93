import os
import subprocess
import sys

import pytest

from trainers.deadline import HUNG, Deadline


class FakeClock:
    """Time that passes when it is told to, second by second, while a deadline watches."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.deadline = Deadline(120.0, clock=lambda: self.now)

    def passes(self, seconds: float) -> bool:
        """Whether the deadline passed meanwhile."""
        for _ in range(int(seconds)):
            self.now += 1.0
            if self.deadline.is_over():
                return True
        self.now += seconds % 1.0
        return self.deadline.is_over()

    def steps(self, *lengths_s: float) -> None:
        for length_s in lengths_s:
            assert not self.passes(length_s)
            self.deadline.beat()


def test_before_the_first_step_half_an_hour_may_pass() -> None:
    clock = FakeClock()
    assert not clock.passes(1790)
    assert clock.passes(20)


def test_start_up_teaches_nothing_of_steps() -> None:
    clock = FakeClock()
    clock.steps(1500, 1, 1)
    assert clock.deadline.limit_s == 120.0


@pytest.mark.parametrize(
    ("lengths_s", "limit_s"),
    [([1, 1, 1], 120), ([1, 20, 1], 200), ([60, 60], 600), ([30, *[1] * 64], 120)],
)
def test_limit_is_ten_times_the_slowest_recent_step_and_at_least_what_is_set(
    lengths_s: list[float], limit_s: float
) -> None:
    clock = FakeClock()
    clock.steps(5, *lengths_s)
    assert not clock.passes(limit_s - 1)
    assert clock.passes(2)


def test_pause_counts_neither_as_hang_nor_as_step() -> None:
    clock = FakeClock()
    clock.steps(1, 1)
    with clock.deadline.paused(), clock.deadline.paused():
        assert not clock.passes(5000)
    clock.steps(1)
    assert clock.deadline.limit_s == 120.0
    assert clock.passes(121)


def test_process_that_was_stopped_for_long_is_not_ended_for_it() -> None:
    clock = FakeClock()
    clock.steps(1, 1)
    clock.now += 600.0
    assert not clock.deadline.is_over()
    clock.steps(1)
    assert clock.deadline.limit_s == 120.0


_HANGS = """
import logging, threading, time
from trainers.deadline import Deadline
logging.basicConfig()

def waits_for_nobody():
    threading.Event().wait()

with Deadline(2.0) as deadline:
    for _ in range(20):
        time.sleep(0.01)
        deadline.beat()
    waits_for_nobody()
"""


def test_process_that_hangs_ends_itself_and_tells_where() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == HUNG
    assert "at most 2 s" in answer.stderr
    assert "20 steps were made" in answer.stderr
    assert "waits_for_nobody" in answer.stderr


_STEPS = """
import random, time
from trainers.deadline import Deadline

lengths = random.Random(0)
ends = time.monotonic() + 20
with Deadline(1.0) as deadline:
    while time.monotonic() < ends:
        end_of_step = time.process_time() + lengths.choice([0.001, 0.01, 0.1, 0.3])
        while time.process_time() < end_of_step:
            pass
        deadline.beat()
"""


@pytest.mark.slow
def test_busy_machine_is_no_hang() -> None:
    """Twice as many busy processes as this machine has cores, steps of very different lengths."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _STEPS], capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert answer.returncode == 0, answer.stderr
