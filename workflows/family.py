"""The models that a pipeline judges: of many without any gain, one is better by luck.

Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure". A model that has not
been judged yet counts as if nothing spoke for it, so that what is proved now stays proved: each is
promoted as soon as that is certain, and at the end all that Holm's procedure proves are. Which runs
judged them, and whether one was killed, changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workflows.ledger import Ledger
from workflows.models import CHAMPION, ChampionChangedError, ModelStore, Version
from workflows.steps import StepRef
from workflows.storage import Storage

MEMBER = "member"
"""Fact of a step `promote`: its `Member`."""


@dataclass(frozen=True)
class Member:
    """A model that was judged."""

    p: float
    """Of its gains; 1 where the gate keeps it back."""
    level: float
    """Chance of a mistake that its rule allows."""
    promotion: Mapping[str, Any] | None
    """What is to be done if it is proved; None where nothing is, or it was done."""


@dataclass(frozen=True)
class Family:
    """All models that a pipeline's steps judge. Picklable.

    What a step's model came to is a fact of its record; until that is committed, a file in the
    run's folder.
    """

    storage: Storage
    folder: str
    steps: tuple[StepRef, ...]
    """That judge, one model each."""

    def join(self, step: str, member: Member) -> None:
        """Write down what a model came to, before its step is done."""
        content = json.dumps({"schema_version": 1, **asdict(member)})
        self.storage.write(f"{self.folder}/{step}.json", content.encode())

    def judged(self) -> dict[str, Member]:
        """By step, as far as they have been."""
        names = {f"{self.folder}/{step.name}.json": step.name for step in self.steps}
        found = {}
        for name, content in self.storage.read_all(names).items():
            told = json.loads(content)
            found[names[name]] = Member(told["p"], told["level"], told["promotion"])
        ledger, others = Ledger(self.storage), [s for s in self.steps if s.name not in found]
        positions = ledger.positions(others)  # in one listing: an object store's take their time
        for step in others:
            record = ledger.record(step, positions[step.fingerprint].committed)
            if record is not None and MEMBER in record.facts:
                found[step.name] = Member(**record.facts[MEMBER])
        return found

    def adjusted(self) -> dict[str, float]:
        """p-values by step, adjusted for all that are judged and are yet to be."""
        return self._adjusted(self.judged())

    def _adjusted(self, judged: Mapping[str, Member]) -> dict[str, float]:
        unknown = {step.name: 1.0 for step in self.steps}
        return holm(unknown | {step: member.p for step, member in judged.items()})

    def proved(self) -> dict[str, Mapping[str, Any]]:
        """What is to be promoted, or was, by step; with the reason among the others."""
        judged = self.judged()
        adjusted = self._adjusted(judged)
        found: dict[str, Mapping[str, Any]] = {}
        for step, member in judged.items():
            if member.promotion is not None and adjusted[step] <= member.level:
                among = f"; p {adjusted[step]:.3g} among {len(self.steps)} models of the pipeline"
                reason = member.promotion["reason"] + (among if len(self.steps) > 1 else "")
                found[step] = {**member.promotion, "reason": reason}
        return found

    def settle(self, *, run: str | None, own: str = "") -> None:
        """Move the aliases that models have earned by now, whichever step judged them.

        A model for which an alias moved before is left alone, whatever became of it since.

        Args:
            run: that finds it out.
            own: a step whose model has to be heard.

        Raises:
            ChampionChangedError: that model was compared with what is champion no more.
        """
        store, changed = ModelStore(self.storage), None
        for step, promotion in self.proved().items():
            version = Version(promotion["name"], promotion["version"])
            if version not in store.versions(version.name) or store.moved(version) is not None:
                continue
            try:
                store.promote(
                    version,
                    expected=_expected(promotion),
                    reason=promotion["reason"],
                    run=run,
                    alias=promotion["alias"],
                    judgement=promotion["judgement"],
                )
            except ChampionChangedError as error:
                # Another step of the run may have done the same at the same time.
                if step == own and store.moved(version) is None:
                    changed = error
        if changed is not None:
            raise changed


def outcome(name: str, alias: str | None) -> str:
    """What became of a version of a model, for people; `alias` is what it was given, if any."""
    if alias == CHAMPION:
        return "promoted"
    return "not promoted" if alias is None else f"waits for pretune models promote {name}@{alias}"


def as_it_came(store: ModelStore, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a step that judged a model, with what that became when others were judged."""
    name, _, number = str(facts["model"]).partition("@")
    moved = store.moved(Version(name, int(number)))
    shown = {key: value for key, value in facts.items() if key != MEMBER}
    if moved is not None:
        told = {"promoted": moved["alias"] == CHAMPION, "outcome": outcome(name, moved["alias"])}
        return {**shown, **told, "reason": moved["reason"]}
    promotion = facts.get(MEMBER, {}).get("promotion")
    if promotion and _expected(promotion) != store.champion(name):
        old = _expected(promotion) or "no champion"
        shown["reason"] += f"; compared with {old}, which is not how it is now: judge it anew"
    return shown


def holm(found: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, adjusted so that the chance of any mistake stays that of one."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(sorted(found, key=lambda one: found[one])):
        least = max(least, min(1.0, (len(found) - place) * found[name]))
        adjusted[name] = least
    return adjusted


def _expected(promotion: Mapping[str, Any]) -> Version | None:
    """The champion that a model was compared with."""
    number = promotion["expected"]
    return None if number is None else Version(promotion["name"], number)
