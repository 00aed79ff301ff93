"""The step `promote`: a version in the model store, the champion if it is proved better."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainers import predictions, task_data
from trainers.errors import DataError
from trainers.retraining import SavedModel
from trainers.task_config import TaskConfig
from trainers.task_types.base import Prediction
from workflows import final, guards, model_card, trainings
from workflows.execution import StageContext
from workflows.family import MEMBER, Family, Member, outcome
from workflows.judgement import Judgement, Tested, judge
from workflows.models import CANDIDATE, CHAMPION, ModelStore, Version
from workflows.openings import open_test
from workflows.pipeline import PromoteSpec


def run(context: StageContext) -> Mapping[str, Any]:
    """The verdict as facts, with what it rests on."""
    spec, store = context.spec(PromoteSpec), ModelStore(context.run.paths.storage)
    family, step, run_id = context.family, context.step.name, context.run.paths.run_id
    level = 1.0 - spec.promote.confidence
    known = store.added(spec.model, context.records["final"].attempt, _rule(context))
    moved = store.moved(known) if known else None
    if known and moved:
        told = decided_before(store, known, moved)
        member = Member(told["p"], level, None)
        family.join(step, member)
        family.settle(run=run_id)
        return {**told, MEMBER: asdict(member)}
    champion = store.champion(spec.model)
    result = json.loads((context.input("final") / final.RESULT).read_text(encoding="utf-8"))
    measured = store.facts(known)["judgement"]["guards"] if known else None
    tested = _tested(context, result, measured)
    found = judge(store, champion, tested, partial(_asked, context, store))
    version = _added(context, store, tested, result, found)
    promotion = {
        "version": version.number,
        "name": version.name,
        "expected": champion.number if champion else None,
        "reason": found.verdict.reason,
        "judgement": found.facts,
        "alias": CHAMPION if spec.promote.approve == "automatic" else CANDIDATE,
    }
    member = Member(found.p, level, promotion if found.is_proved else None)
    family.join(step, member)
    family.settle(run=run_id, own=step)
    moved = store.moved(version)
    facts = found.facts
    if found.is_proved and moved is None:
        facts["reason"] += _among(family, step)
    alias = moved["alias"] if moved else None
    return {**facts_of(store, version, alias, facts), MEMBER: asdict(member)}


def _among(family: Family, step: str) -> str:
    """Why a model that is proved by itself waits for others."""
    return (
        f"; p {family.adjusted()[step]:.3g} among {len(family.steps)} models of the pipeline, of "
        f"which {len(family.judged())} are judged"
    )


def _rule(context: StageContext) -> dict[str, Any]:
    return context.spec(PromoteSpec).promote.model_dump(mode="json")


def _tested(
    context: StageContext, result: Mapping[str, Any], measured: guards.Measured | None
) -> Tested:
    """The new model, and what its guards ask about it, unless an attempt before measured that.

    Raises:
        DataError: it was tested on other rows than there are now.
    """
    spec, data = context.spec(PromoteSpec), context.input("data")
    folder = context.input("final") / final.MODEL
    digest = task_data.digest_of_test(data)
    tested = Tested.of(lambda name: (folder / name).read_bytes(), spec.task, digest, spec.promote)
    if tested.truth != task_data.load(data, task_data.TEST).labels:
        final_step = context.step.inputs["final"].name
        raise DataError(
            f"{final_step} was tested on other rows than {context.step.inputs['data'].name} has; "
            f"compute it anew with --from {final_step}"
        )
    if measured is None:
        measured = _measured(context, result, tested, folder)
    return replace(tested, measured=measured)


def _measured(
    context: StageContext, result: Mapping[str, Any], tested: Tested, folder: Path
) -> guards.Measured:
    spec, data = context.spec(PromoteSpec), context.input("data")
    measured = guards.measured(
        spec.promote.guards,
        tested.kind,
        tested.truth,
        tested.said,
        slices=task_data.slices_of_test(data),
        seeds=[scores[spec.task.metric] for scores in result["seeds"]["pretrained"]],
        size_bytes=_size_bytes(folder),
    )
    if latency := spec.promote.guards.latency:
        median, high = trainings.latency(context, folder, spec.task, latency.batch_size)
        measured |= {"latency_p50_ms": median, "latency_p95_ms": high}
    return measured


def _size_bytes(folder: Path) -> int:
    """Of what is needed to use a model."""
    notes = {predictions.FILE, predictions.CONSTANT, predictions.SCRATCH}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in notes]
    return sum(path.stat().st_size for path in files)


def _added(
    context: StageContext,
    store: ModelStore,
    tested: Tested,
    result: Mapping[str, Any],
    found: Judgement,
) -> Version:
    """The new model as a version, with what is written about it."""
    from workflows import mlmodel  # imports MLflow

    spec = context.spec(PromoteSpec)
    return store.add(
        spec.model,
        context.input("final") / final.MODEL,
        fingerprint=context.step.inputs["final"].fingerprint,
        attempt=context.records["final"].attempt,
        task=spec.task.model_dump(mode="json"),
        scores=result["test"],
        more={
            "hyperparameters": result["hyperparameters"],
            "test_split": tested.digest,
            "promote": _rule(context),
            "judgement": found.facts,
        },
        documents={
            **model_card.documents(context, result, found.facts),
            **mlmodel.documents(spec.task, context.records["final"]),
        },
    )


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


def decided_before(store: ModelStore, version: Version, moved: Mapping[str, Any]) -> dict[str, Any]:
    """What an attempt at this step told that was killed behind its promotion, or is made anew.

    What became of the champion since then, such as a rollback, is not undone.
    """
    judgement = moved["judgement"] or store.facts(version)["judgement"]
    return facts_of(store, version, moved["alias"], {**judgement, "reason": moved["reason"]})


def facts_of(
    store: ModelStore, version: Version, alias: str | None, judgement: Mapping[str, Any]
) -> dict[str, Any]:
    """Of a step that has judged a version; `alias` is what it was given, if any."""
    return {
        "model": str(version),
        "promoted": alias == CHAMPION,
        "outcome": outcome(version.name, alias),
        "champion": str(store.champion(version.name) or ""),
        **judgement,
    }
