"""The models that one run judges: of many without any gain, one is better by luck.

Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure". Who has not been
judged yet counts as if nothing spoke for it, so that what is proved now stays proved: each model is
promoted as soon as that is certain, and at the end all that Holm's procedure proves are.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workflows.models import CHAMPION, ModelStore, Version
from workflows.storage import Storage

WAITING = "waiting"
"""Fact of a step whose model is proved by itself, and not yet among the others: its `Member`."""


@dataclass(frozen=True)
class Member:
    """A model that was judged."""

    p: float
    """Of its gains; 1 where the gate keeps it back."""
    level: float
    """Chance of a mistake that its rule allows."""
    promotion: Mapping[str, Any] | None
    """What is to be done if it is proved; None where the gate keeps it back."""


@dataclass(frozen=True)
class Family:
    """All models that a run judges. Picklable; what each came to is a file in the run's folder."""

    storage: Storage
    folder: str
    steps: tuple[str, ...]
    """That judge, one model each."""

    def join(self, step: str, member: Member) -> None:
        """Write down what a model came to."""
        content = json.dumps({"schema_version": 1, **asdict(member)})
        self.storage.write(f"{self.folder}/{step}.json", content.encode())

    def judged(self) -> dict[str, Member]:
        """By step, as far as they have been."""
        names = {f"{self.folder}/{step}.json": step for step in self.steps}
        found = {}
        for name, content in self.storage.read_all(names).items():
            told = json.loads(content)
            found[names[name]] = Member(told["p"], told["level"], told["promotion"])
        return found

    def adjusted(self) -> dict[str, float]:
        """p-values by step, adjusted for all that are judged and are yet to be."""
        unknown = dict.fromkeys(self.steps, 1.0)
        return holm(unknown | {step: member.p for step, member in self.judged().items()})

    def proved(self) -> dict[str, Mapping[str, Any]]:
        """What is to be promoted, by step."""
        adjusted = self.adjusted()
        return {
            step: member.promotion
            for step, member in self.judged().items()
            if member.promotion is not None and adjusted[step] <= member.level
        }


def waiting(store: ModelStore, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Member]:
    """Models of earlier runs that wait for others still, such as those of a run that was killed.

    Args:
        store: of the models.
        found: facts of steps `promote`, by the step's name.
    """
    return {
        step: Member(**facts[WAITING])
        for step, facts in found.items()
        if WAITING in facts and store.moved(_version(facts)) is None
    }


def outcome(name: str, alias: str | None) -> str:
    """What became of a version of a model, for people; `alias` is what it was given, if any."""
    if alias == CHAMPION:
        return "promoted"
    return "not promoted" if alias is None else f"waits for pretune models promote {name}@{alias}"


def as_it_came(store: ModelStore, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a step `promote`, with what its model became when the run's others were judged."""
    version = _version(facts)
    moved = store.moved(version)
    shown = {name: value for name, value in facts.items() if name != WAITING}
    if moved is None:
        return shown
    told = {
        "promoted": moved["alias"] == CHAMPION,
        "outcome": outcome(version.name, moved["alias"]),
    }
    return {**shown, **told, "reason": moved["reason"]}


def _version(facts: Mapping[str, Any]) -> Version:
    name, _, number = str(facts["model"]).partition("@")
    return Version(name, int(number))


def holm(found: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, adjusted so that the chance of any mistake stays that of one."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(sorted(found, key=lambda one: found[one])):
        least = max(least, min(1.0, (len(found) - place) * found[name]))
        adjusted[name] = least
    return adjusted
