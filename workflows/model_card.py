"""What is written about a version: a model card for people, a lineage for machines."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2

from workflows import history
from workflows.execution import StageContext
from workflows.history import RunHead
from workflows.ledger import Record
from workflows.pipeline import PromoteBaseSpec, PromoteSpec
from workflows.steps import StepRef

CARD, LINEAGE, PIPELINE = "README.md", "lineage.json", history.PIPELINE

_TEMPLATE, _TEMPLATE_OF_BASE = "model_card.md.j2", "base_card.md.j2"
_PIPELINES = {
    "classification": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "generation": "text-generation",
}
"""What Hugging Face calls a pipeline for each type of task."""


def documents(
    context: StageContext, result: Mapping[str, Any], judgement: Mapping[str, Any]
) -> dict[str, str]:
    """A version's texts by file name.

    Args:
        context: of the step `promote`.
        result: what the step `final` wrote down.
        judgement: what the gate said.
    """
    spec, head = context.spec(PromoteSpec), _head(context)
    ancestors = list(_ancestors(context, head, context.records["final"]))
    by_kind = {one.kind: one for one in ancestors}
    base = by_kind.get("pretrain") or by_kind.get("base")
    card = _rendered(
        _TEMPLATE,
        name=spec.model,
        task=spec.task,
        pipeline_tag=_PIPELINES[spec.task.type],
        base=base,
        licence=base.facts.get("licence") if base else None,
        corpus=by_kind.get("corpus"),
        data=context.records["data"],
        result=result,
        judgement=judgement,
        rule=spec.promote,
        origins={
            origin: _over_seeds([scores[result["metric"]] for scores in found])
            for origin, found in result["seeds"].items()
            if found
        },
    )
    return {CARD: card, **_origin(context, spec.model, head, ancestors)}


def base_documents(
    context: StageContext, unit: str, judgement: Mapping[str, Any]
) -> dict[str, str]:
    """The same of a pretrained model.

    Args:
        context: of the step `promote_base`.
        unit: of its score.
        judgement: what the gate said.
    """
    spec, head, trained = context.spec(PromoteBaseSpec), _head(context), context.records["pretrain"]
    ancestors = list(_ancestors(context, head, trained))
    by_kind = {one.kind: one for one in ancestors}
    card = _rendered(
        _TEMPLATE_OF_BASE,
        name=spec.model,
        told=context.records["losses"].facts,
        trained=trained,
        unit=unit,
        licence=trained.facts.get("licence"),
        is_from_another=(
            "adopted_from" in trained.facts or trained.spec["model"]["architecture"] is None
        ),
        corpus=by_kind.get("corpus"),
        judgement=judgement,
        rule=spec.promote,
    )
    return {CARD: card, **_origin(context, spec.model, head, ancestors)}


def _head(context: StageContext) -> RunHead | None:
    return history.head(context.run.paths.storage, context.run.paths.run_id)


def _origin(
    context: StageContext, model: str, head: RunHead | None, ancestors: list[Record]
) -> dict[str, str]:
    """Where a model comes from, for machines."""
    paths = context.run.paths
    found = {LINEAGE: json.dumps(_lineage(context, model, head, ancestors), indent=1)}
    if head is not None:
        found[PIPELINE] = paths.storage.read(f"{paths.directory}/{PIPELINE}").decode()
    return found


def _ancestors(context: StageContext, head: RunHead | None, trained: Record) -> Iterator[Record]:
    """Records of all that led to a model, its training first; those that are still there.

    Which step a fingerprint is of, the run's plan tells.
    """
    steps = {} if head is None else head.steps
    refs = {
        fingerprint: StepRef(name, kind, fingerprint) for name, (kind, fingerprint) in steps.items()
    }
    wanted, seen = [trained], set[str]()
    while wanted:
        record = wanted.pop(0)
        if record.fingerprint in seen:
            continue
        seen.add(record.fingerprint)
        yield record
        for fingerprint in record.inputs.values():
            record_of_input = (
                context.artifacts.find(refs[fingerprint]) if fingerprint in refs else None
            )
            if record_of_input is not None:
                wanted.append(record_of_input)


def _lineage(
    context: StageContext, model: str, head: RunHead | None, ancestors: list[Record]
) -> dict[str, Any]:
    base = next((record for record in ancestors if record.kind == "base"), None)
    told = ("name", "kind", "version", "fingerprint", "inputs", "outside", "spec", "finished_at")
    return {
        "schema_version": 1,
        "pipeline": model.partition(".")[0],
        "run": context.run.paths.run_id,
        "folder": head.folder if head else "",
        "commit": head.commit if head else None,
        "base_model": base.facts.get("version") if base else None,
        "environment": ancestors[0].versions,
        "steps": [
            {**{name: getattr(record, name) for name in told}, "code": record.source}
            for record in ancestors
        ],
    }


def _rendered(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def _over_seeds(scores: list[float]) -> str:
    spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
    noun = "training" if len(scores) == 1 else "trainings"
    return f"{fmean(scores):.4f}{spread} ({len(scores)} {noun})"
