"""The step `promote`: a version in the model store, which becomes champion if it is proved better.

What the champion said of the same test rows is read from its version; where it was tested on
others it is asked again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainers import predictions, resampling, task_data
from trainers.retraining import Testing
from trainers.task_types import TaskType, type_of
from trainers.task_types.base import Prediction
from workflows import final, significance, trainings
from workflows.execution import StageContext
from workflows.models import ModelStore, Version
from workflows.openings import open_test
from workflows.pipeline import PromoteSpec
from workflows.promotion import Evaluation, Promote, Rival, decide
from workflows.significance import Gain
from workflows.task_section import PromoteConfig


def run(context: StageContext) -> Mapping[str, Any]:
    """The verdict as facts, with what it rests on."""
    spec = context.spec(PromoteSpec)
    result = json.loads((context.input("final") / final.RESULT).read_text(encoding="utf-8"))
    store = ModelStore(context.run.paths.storage)
    tested = _tested(context)
    champion = store.champion(spec.model)
    constant = tested.rival(result["constant"], tested.said_in(final.CONSTANT))
    scratch = None
    if (context.input("final") / final.SCRATCH).is_file():
        scratch = tested.rival("the network from random weights", tested.said_in(final.SCRATCH))
    incumbent = None if champion is None else _incumbent(context, tested, store, champion)
    challenger = tested.evaluation("the new model", tested.said)
    verdict = decide(
        challenger, constant=constant, scratch=scratch, champion=incumbent, rule=spec.promote
    )
    version = store.add(
        spec.model,
        context.input("final") / final.MODEL,
        fingerprint=context.step.inputs["final"].fingerprint,
        attempt=context.records["final"].attempt,
        task=spec.task.model_dump(mode="json"),
        scores=result["test"],
        test_split=tested.digest,
    )
    promoted = isinstance(verdict, Promote)
    if promoted:
        store.promote(
            version, expected=champion, reason=verdict.reason, run=context.run.paths.run_id
        )
    rivals = {"constant": constant, "scratch": scratch, "champion": incumbent}
    return {
        "model": str(version),
        "promoted": promoted,
        "reason": verdict.reason,
        "score": challenger.score,
        "champion": str(store.champion(spec.model) or ""),
        "compared": {name: _facts(rival) for name, rival in rivals.items() if rival},
    }


@dataclass(frozen=True)
class _Tested:
    """The new model's test: what others are compared with, row by row."""

    context: StageContext
    kind: TaskType
    digest: str
    """Of the test rows."""
    truth: Sequence[Any]
    said: Sequence[Prediction]

    @property
    def _rule(self) -> PromoteConfig:
        return self.context.spec(PromoteSpec).promote

    def said_in(self, name: str) -> list[Prediction]:
        """What another said, out of a file of the step `final`."""
        return predictions.read((self.context.input("final") / name).read_bytes())[1]

    def evaluation(self, model: str, said: Sequence[Prediction]) -> Evaluation:
        """Of what a model of this task said of these rows."""
        scores = self.kind.score(self.truth, said)
        return Evaluation(
            model=model,
            score=scores.get(self.kind.task.metric, math.nan),
            type=self.kind.task.type,
            labels=tuple(self.kind.labels),
            test=self.digest,
        )

    def rival(self, model: str, said: Sequence[Prediction], *, needed: float = 0.0) -> Rival:
        """What another said of these rows, and how much better the new model is."""
        evaluation = self.evaluation(model, said)
        is_defined = math.isfinite(evaluation.score)
        return Rival(evaluation, self._gain(said, needed) if is_defined else None)

    def _gain(self, other: Sequence[Prediction], needed: float) -> Gain:
        kind, truth, rule = self.kind, self.truth, self._rule
        sign = -1.0 if kind.task.lower_is_better else 1.0
        draws: dict[str, Any] = {"sign": sign, "resamples": rule.resamples, "seed": rule.seed}
        gain = significance.bootstrap(
            resampling.resampled(kind, truth, self.said),
            resampling.resampled(kind, truth, other),
            len(truth),
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


def _tested(context: StageContext) -> _Tested:
    data, file = context.input("data"), context.input("final") / final.MODEL / predictions.FILE
    truth, said = predictions.read(file.read_bytes())
    kind = type_of(context.spec(PromoteSpec).task, task_data.load_labels(data))
    return _Tested(context, kind, task_data.digest_of_test(data), truth, said)


def _incumbent(
    context: StageContext, tested: _Tested, store: ModelStore, champion: Version
) -> Rival:
    """The champion on the same rows; of another task or with other labels it is not asked."""
    task, facts = context.spec(PromoteSpec).task, store.facts(champion)
    config = json.loads(store.read(champion, "config.json"))
    names = {int(number): name for number, name in config.get("id2label", {}).items()}
    labels = tuple(names[number] for number in sorted(names)) if tested.kind.labels else ()
    other = Evaluation(
        str(champion), math.nan, facts["task"].get("type", task.type), labels, tested.digest
    )
    if (other.type, other.labels) != (task.type, tuple(tested.kind.labels)):
        return Rival(other, None)
    if facts.get("test_split") == tested.digest:
        _, said = predictions.read(store.read(champion, predictions.FILE))
    else:
        said = _asked_again(context, tested, store, champion)
    return tested.rival(str(champion), said, needed=context.spec(PromoteSpec).promote.needed)


def _asked_again(
    context: StageContext, tested: _Tested, store: ModelStore, champion: Version
) -> list[Prediction]:
    """What the champion says of rows that it was not tested on."""
    folder = store.verified(champion)
    open_test(
        context.run.paths.storage,
        tested.digest,
        step=context.step.name,
        run=context.run.paths.run_id,
    )
    execution = trainings.execution_of(context.run.execution.trials)
    testing = Testing(folder, context.spec(PromoteSpec).task, context.input("data"), execution)
    ((_, said),) = trainings.all_tested(context, [testing], {folder: store.files(champion)})
    return said


def _facts(rival: Rival) -> dict[str, Any]:
    told = {"score": rival.evaluation.score, **(asdict(rival.gain) if rival.gain else {})}
    finite = {name: value for name, value in told.items() if math.isfinite(value)}
    return {"model": rival.evaluation.model, **finite}
