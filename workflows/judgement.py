"""A new model compared with all that it must be better than, on what each said of the same rows.

What a champion said is read from its version; where it was tested on other rows it is asked again.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from trainers import predictions, resampling
from trainers.task_config import TaskConfig
from trainers.task_types import TaskType, class_of, type_of
from trainers.task_types.base import Prediction
from workflows import guards, significance
from workflows.models import ModelStore, ModelStoreError, Version
from workflows.promote_config import PromoteConfig
from workflows.promotion import BY_HAND, Evaluation, Keep, Promote, Rival, decide, needed_gain
from workflows.significance import Gain

Read = Callable[[str], bytes]
"""Gives a file of a model's folder by its name."""
Ask = Callable[[Version, TaskConfig], Sequence[Prediction]]
"""Has a version answer the test rows, as a model of this task."""


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on."""

    verdict: Promote | Keep
    challenger: Evaluation
    rivals: Mapping[str, Rival]
    measured: guards.Measured
    """What the guards ask for."""

    @property
    def is_proved(self) -> bool:
        """Whether the gate lets the model through."""
        return isinstance(self.verdict, Promote)

    @property
    def p(self) -> float:
        """Of the gains that were asked for, the largest: all must be proved. 1 if it is kept."""
        if not self.is_proved:
            return 1.0
        asked = [self.rivals[name].gain for name in ("constant", "champion") if name in self.rivals]
        return max((gain.p for gain in asked if gain is not None), default=0.0)

    @property
    def facts(self) -> dict[str, Any]:
        """For records, reports and the model card."""
        return {
            "reason": self.verdict.reason,
            "p": self.p,
            "score": self.challenger.score,
            "compared": {name: _told(rival) for name, rival in self.rivals.items()},
            "guards": dict(self.measured),
        }


def judge(
    store: ModelStore, champion: Version | None, tested: "Tested", ask: Ask | None
) -> Judgement:
    """Compare a new model with all that it must be better than.

    Args:
        store: of the champion.
        champion: None where there is none.
        tested: the new model.
        ask: has the champion answer rows that it was not tested on; None where nobody can.
    """
    challenger = tested.evaluation("the new model", tested.said)
    constant = tested.rival(tested.constant, tested.said_in(predictions.CONSTANT))
    rivals = {"constant": constant}
    if champion is None:
        scratch = tested.said_in(predictions.SCRATCH)
        if scratch:
            rivals["scratch"] = tested.rival("the network from random weights", scratch)
    else:
        rivals["champion"] = _incumbent(store, champion, tested, ask)
    verdict = decide(
        challenger,
        constant=constant,
        scratch=rivals.get("scratch"),
        champion=rivals.get("champion"),
        rule=tested.rule,
        broken=guards.broken(tested.rule.guards, tested.measured, sign=tested.sign),
    )
    return Judgement(verdict, challenger, rivals, tested.measured)


def again(store: ModelStore, version: Version, champion: Version | None) -> Judgement:
    """Judge a version of the store as the run did that made it.

    Raises:
        ModelStoreError: no run has tested it.
    """
    return judge(store, champion, Tested.of_version(store, version), None)


@dataclass(frozen=True)
class Tested:
    """A model's answers to the test rows: what others are compared with, row by row."""

    read: Read
    """Of its folder."""
    kind: TaskType
    digest: str
    """Of the test rows."""
    rule: PromoteConfig
    truth: Sequence[Any]
    said: Sequence[Prediction]
    measured: guards.Measured = field(default_factory=dict)
    """What the rule's guards ask for."""

    @classmethod
    def of(cls, read: Read, task: TaskConfig, digest: str, rule: PromoteConfig) -> "Tested":
        """Out of a model's folder.

        Args:
            read: of the folder.
            task: that the model is for.
            digest: of the test rows.
            rule: of promotion.
        """
        truth, said = predictions.read(read(predictions.FILE))
        return cls(read, type_of(task, labels_of(read, task)), digest, rule, truth, said)

    @classmethod
    def of_version(cls, store: ModelStore, version: Version) -> "Tested":
        """Out of the store.

        Raises:
            ModelStoreError: no run has tested the version.
        """
        facts = store.facts(version)
        if not {"promote", "test_split"} <= facts.keys() or predictions.FILE not in facts["files"]:
            raise ModelStoreError(
                f"{version} was tested by no run, so that there is nothing to compare; "
                f"{BY_HAND.format(version)}"
            )

        def read(name: str) -> bytes:
            if name not in facts["files"]:
                raise FileNotFoundError(name)
            return store.read(version, name)

        tested = cls.of(
            read,
            TaskConfig.model_validate(facts["task"]),
            facts["test_split"],
            PromoteConfig.model_validate(facts["promote"]),
        )
        return replace(tested, measured=facts["judgement"].get("guards", {}))

    @property
    def sign(self) -> float:
        """-1 where less of the task's metric is better."""
        return -1.0 if self.kind.task.lower_is_better else 1.0

    @property
    def constant(self) -> str:
        """What always gives the same answer, for people."""
        return f"always the same answer ({self.kind.constant})"

    def said_in(self, name: str) -> list[Prediction]:
        """What another said, out of a file beside the model's; nothing where there is none."""
        try:
            return predictions.read(self.read(name))[1]
        except FileNotFoundError:
            return []

    def evaluation(self, model: str, said: Sequence[Prediction]) -> Evaluation:
        """Of what a model of this task said of these rows."""
        scores = self.kind.score(self.truth, said)
        return Evaluation(
            model=model,
            score=scores.get(self.kind.task.metric, math.nan),
            type=_type_told(self.kind.task),
            labels=tuple(self.kind.labels),
            test=self.digest,
            unit=_unit_of(self.read, self.kind.task),
        )

    def rival(self, model: str, said: Sequence[Prediction], *, needed: float = 0.0) -> Rival:
        """What another said of these rows, and how much better the new model is."""
        evaluation = self.evaluation(model, said)
        is_defined = math.isfinite(evaluation.score)
        return Rival(evaluation, self._gain(said, needed) if is_defined else None)

    def _gain(self, other: Sequence[Prediction], needed: float) -> Gain:
        kind, truth, rule = self.kind, self.truth, self.rule
        draws: dict[str, Any] = {"sign": self.sign, "resamples": rule.resamples, "seed": rule.seed}
        gain = significance.bootstrap(
            resampling.resampled(kind, truth, self.said),
            resampling.resampled(kind, truth, other),
            len(truth),
            differing=resampling.differing(kind, self.said, other),
            needed=needed,
            confidence=rule.confidence,
            **draws,
        )
        match rule.test:
            case "mcnemar":
                own, others = (resampling.right(kind, truth, said) for said in (self.said, other))
                return replace(gain, p=significance.mcnemar(own, others))
            case "randomization":
                both = resampling.resampled(kind, [*truth, *truth], [*self.said, *other])
                return replace(gain, p=significance.randomization(both, len(truth), **draws))
        return gain


def labels_of(read: Read, task: TaskConfig) -> list[str]:
    """Labels that a model's folder names; none where its answers are numbers or texts."""
    if not class_of(task.type, multi_label=task.multi_label).has_labels:
        return []
    # What is transformers' default does not stand in the file.
    names = json.loads(read("config.json")).get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    return [names[number] for number in sorted(names, key=int)]


def _type_told(task: TaskConfig) -> str:
    return f"{task.type} with several labels a row" if task.multi_label else task.type


def _unit_of(read: Read, task: TaskConfig) -> str:
    if task.metric != "loss":
        return ""
    return f"{task.answer_length} of {hashlib.sha256(read('tokenizer.json')).hexdigest()}"


def _incumbent(store: ModelStore, champion: Version, tested: Tested, ask: Ask | None) -> Rival:
    """The champion on the same rows; of another task or with other labels it is not asked."""
    mine, facts = tested.kind.task, store.facts(champion)
    read = partial(store.read, champion)
    other = Evaluation(str(champion), math.nan, "unknown", (), facts.get("test_split") or "")
    if not facts["task"]:
        return Rival(other, None)  # a step of the user's own made it
    task = _asked_for(TaskConfig.model_validate(facts["task"]), mine)
    other = replace(other, type=_type_told(task))
    if other.type != _type_told(mine):
        return Rival(other, None)
    other = replace(other, labels=tuple(labels_of(read, task)), unit=_unit_of(read, task))
    if (other.labels, other.unit) != (tuple(tested.kind.labels), _unit_of(tested.read, mine)):
        return Rival(other, None)
    if other.test == tested.digest:
        said: Sequence[Prediction] = predictions.read(read(predictions.FILE))[1]
    elif ask is None:
        return Rival(other, None)
    else:
        said = ask(champion, task)
    return tested.rival(str(champion), said, needed=needed_gain(tested.rule))


def _asked_for(task: TaskConfig, other: TaskConfig) -> TaskConfig:
    """A model's own settings, such as how long its texts are, for another's rows and metric."""
    return task.model_copy(update={"data": other.data, "metric": other.metric})


def _told(rival: Rival) -> dict[str, Any]:
    numbers = {"score": rival.evaluation.score, **(asdict(rival.gain) if rival.gain else {})}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return {"model": rival.evaluation.model, **finite}
