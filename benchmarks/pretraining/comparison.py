"""What is compared, and what one run's JSON line says."""

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """One side of a comparison."""

    name: str
    script: str
    ranks: int = 1
    stage: int = 1


@dataclass(frozen=True)
class Group:
    """Subjects that are compared; the first is pretune."""

    part: str
    title: str
    shared: str
    """Folder of what is prepared for it."""
    subjects: tuple[Subject, ...]

    @property
    def has_equal_losses(self) -> bool:
        """Whether all subjects compute the same."""
        return self.part in ("zero", "single")


Runs = dict[tuple[str, str], list[dict]]
"""(title of the group, name of the subject) -> the JSON lines of its runs, in order."""


def rate_of(line: dict, warm_up: int) -> float:
    """Tokens per second behind the warm-up, without padding."""
    seconds = line["ends"][-1] - line["ends"][warm_up - 1]
    return sum(line["tokens"][warm_up:]) / seconds


def parts_of_startup(line: dict) -> dict[str, float]:
    """Seconds of each part, in order."""
    marks = dict(line["marks"])
    if line["ends"]:
        marks["first step"] = line["ends"][0]
    seconds, before = {}, line["started"]
    for name, at in sorted(marks.items(), key=lambda mark: mark[1]):
        seconds[name], before = at - before, at
    return seconds


def value_of(group: Group, line: dict, warm_up: int) -> float:
    """What is compared: tokens per second, or the seconds of start-up."""
    if group.part == "startup":
        return sum(parts_of_startup(line).values())
    return rate_of(line, warm_up)


def quartiles(values: list[float]) -> tuple[float, float]:
    """The lower and the upper one."""
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper
