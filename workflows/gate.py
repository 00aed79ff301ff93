"""The step `promote`: a version in the model store, which becomes champion if it is proved better.

What a champion said of the same test rows is read from its version; where it was tested on others
it is asked again.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from trainers import predictions, resampling, task_data
from trainers.errors import DataError
from trainers.retraining import SavedModel
from trainers.task_config import TaskConfig
from trainers.task_types import TaskType, class_of, type_of
from trainers.task_types.base import Prediction
from workflows import final, model_card, significance, trainings
from workflows.execution import StageContext
from workflows.family import Family, Member, outcome
from workflows.models import (
    CANDIDATE,
    CHAMPION,
    ChampionChangedError,
    ModelStore,
    ModelStoreError,
    Version,
)
from workflows.openings import open_test
from workflows.pipeline import PromoteSpec
from workflows.promotion import BY_HAND, Evaluation, Keep, Promote, Rival, decide, needed_gain
from workflows.significance import Gain
from workflows.task_section import PromoteConfig

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

    @property
    def p(self) -> float:
        """Of the gains that were asked for, the largest: all must be proved."""
        asked = [self.rivals[name].gain for name in ("constant", "champion") if name in self.rivals]
        return max((gain.p for gain in asked if gain is not None), default=0.0)

    @property
    def facts(self) -> dict[str, Any]:
        """For records, reports and the model card."""
        return {
            "reason": self.verdict.reason,
            "score": self.challenger.score,
            "compared": {name: _told(rival) for name, rival in self.rivals.items()},
        }


def run(context: StageContext) -> Mapping[str, Any]:
    """The verdict as facts, with what it rests on."""
    from workflows import mlmodel  # imports MLflow

    spec, store = context.spec(PromoteSpec), ModelStore(context.run.paths.storage)
    attempt, rule = context.records["final"].attempt, spec.promote.model_dump(mode="json")
    known = store.added(spec.model, attempt, rule)
    moved = store.moved(known) if known else None
    if known is not None and moved is not None:
        return _decided_before(store, known, moved)
    champion = store.champion(spec.model)
    folder = context.input("final") / final.MODEL
    digest = task_data.digest_of_test(context.input("data"))
    tested = Tested.of(lambda name: (folder / name).read_bytes(), spec.task, digest, spec.promote)
    if tested.truth != task_data.load(context.input("data"), task_data.TEST).labels:
        final_step = context.step.inputs["final"].name
        raise DataError(
            f"{final_step} was tested on other rows than {context.step.inputs['data'].name} has; "
            f"compute it anew with --from {final_step}"
        )
    found = judge(store, champion, tested, partial(_asked, context, store))
    result = json.loads((context.input("final") / final.RESULT).read_text(encoding="utf-8"))
    version = store.add(
        spec.model,
        folder,
        fingerprint=context.step.inputs["final"].fingerprint,
        attempt=attempt,
        task=spec.task.model_dump(mode="json"),
        scores=result["test"],
        more={
            "hyperparameters": result["hyperparameters"],
            "test_split": digest,
            "promote": rule,
            "judgement": found.facts,
        },
        documents={
            **model_card.documents(context, result, found.facts),
            **mlmodel.documents(spec.task, context.records["final"]),
        },
    )
    is_proved = isinstance(found.verdict, Promote)
    promotion = {
        "version": version.number,
        "name": version.name,
        "expected": champion.number if champion else None,
        "reason": found.verdict.reason,
        "alias": CHAMPION if spec.promote.approve == "automatic" else CANDIDATE,
    }
    family = context.family
    level = 1.0 - spec.promote.confidence
    family.join(
        context.step.name,
        Member(found.p if is_proved else 1.0, level, promotion if is_proved else None),
    )
    _promote_proved(store, family, context.step.name, run=context.run.paths.run_id)
    moved = store.moved(version)
    facts = found.facts
    if is_proved and moved is None:
        facts |= {"reason": _waiting(family, context.step.name, found.verdict.reason)}
    return _facts(store, version, moved["alias"] if moved else None, facts)


def _promote_proved(store: ModelStore, family: Family, step: str, *, run: str) -> None:
    """Move the aliases that this run's models have earned by now, whichever step judged them.

    Raises:
        ChampionChangedError: the step's own model was compared with what is champion no more.
    """
    adjusted = family.adjusted()
    for other, promotion in family.proved().items():
        version = Version(promotion["name"], promotion["version"])
        expected = promotion["expected"]
        among = f"; {adjusted[other]:.3g} among {len(family.steps)} models of this run"
        try:
            store.promote(
                version,
                expected=None if expected is None else Version(version.name, expected),
                reason=promotion["reason"] + (among if len(family.steps) > 1 else ""),
                run=run,
                alias=promotion["alias"],
            )
        except ChampionChangedError:
            if other == step and store.moved(version) is None:
                raise


def _waiting(family: Family, step: str, reason: str) -> str:
    return (
        f"{reason}; {family.adjusted()[step]:.3g} among {len(family.steps)} models of this run, of "
        f"which {len(family.judged())} are judged"
    )


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
    )
    return Judgement(verdict, challenger, rivals)


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

        return cls.of(
            read,
            TaskConfig.model_validate(facts["task"]),
            facts["test_split"],
            PromoteConfig.model_validate(facts["promote"]),
        )

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
        sign = -1.0 if kind.task.lower_is_better else 1.0
        draws: dict[str, Any] = {"sign": sign, "resamples": rule.resamples, "seed": rule.seed}
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


def _asked(
    context: StageContext, store: ModelStore, champion: Version, task: TaskConfig
) -> Sequence[Prediction]:
    """What a champion says of rows that it was not tested on."""
    folder = store.verified(champion)
    open_test(
        context.run.paths.storage,
        task_data.digest_of_test(context.input("data")),
        step=context.step.name,
        run=context.run.paths.run_id,
    )
    execution = trainings.execution_of(context.run.execution.trials)
    saved = SavedModel(folder, task, context.input("data"), execution)
    ((_, said),) = trainings.all_tested(context, [saved], {folder: store.files(champion)})
    return said


def _decided_before(
    store: ModelStore, version: Version, moved: Mapping[str, Any]
) -> dict[str, Any]:
    """What an attempt at this step told that was killed behind its promotion, or is made anew.

    What became of the champion since then, such as a rollback, is not undone.
    """
    judgement = store.facts(version)["judgement"]
    return _facts(store, version, moved["alias"], {**judgement, "reason": moved["reason"]})


def _facts(
    store: ModelStore, version: Version, alias: str | None, judgement: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "model": str(version),
        "promoted": alias == CHAMPION,
        "outcome": outcome(version.name, alias),
        "champion": str(store.champion(version.name) or ""),
        **judgement,
    }


def _told(rival: Rival) -> dict[str, Any]:
    numbers = {"score": rival.evaluation.score, **(asdict(rival.gain) if rival.gain else {})}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return {"model": rival.evaluation.model, **finite}
