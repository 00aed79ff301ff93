"""Steps about the pretrained model: what it loses on held-out documents; is it promoted?"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trainers import corpus, document_losses, predictions
from trainers.config import Objective
from trainers.document_losses import DocumentLosses, LossWork
from trainers.pretrain_work import FACTS
from workflows import gate, model_card, model_files
from workflows.base_judgement import Scored, judge
from workflows.execution import StageContext
from workflows.judgement import Judgement
from workflows.models import CANDIDATE, CHAMPION, ModelStore, Version
from workflows.pipeline import LossesSpec, PromoteBaseSpec
from workflows.trainings import whole_model_worker

DOCUMENTS = "documents.json"
"""The texts that were read, for a champion that was not asked about them."""
_SHARDS_KEPT = 2
_NOT_OF_A_MODEL = {
    FACTS,
    predictions.FILE,
    predictions.CONSTANT,
    predictions.SCRATCH,
    document_losses.FILE,
    model_files.MANIFEST,
    model_card.CARD,
    model_card.LINEAGE,
}
"""Files that may stand beside it."""


def measure(context: StageContext) -> Mapping[str, Any]:
    """What the model loses on each of some held-out documents, in a file; its score as a fact."""
    spec = context.spec(LossesSpec)
    texts = document_losses.held_out(
        _validation_shards(context), documents=spec.documents, characters=spec.characters
    )
    found = _read(context, context.input("pretrain"), texts, spec.objective, spec.sequence_length)
    document_losses.write(context.output / document_losses.FILE, found)
    (context.output / DOCUMENTS).write_text(json.dumps(texts), encoding="utf-8")
    return {
        "objective": spec.objective,
        "sequence_length": spec.sequence_length,
        "documents": len(texts),
        "metric": found.metric,
        **_scores(found),
    }


def run(context: StageContext) -> Mapping[str, Any]:
    """A version of the model; the champion if it is proved better. The verdict as facts."""
    spec, store = context.spec(PromoteBaseSpec), ModelStore(context.run.paths.storage)
    known = store.added(spec.model, context.records["pretrain"].attempt, _rule(context))
    moved = store.moved(known) if known else None
    if known and moved:
        told = gate.decided_before(store, known, moved)
        return {**told, "metric": store.facts(known)["metric"]}
    champion = store.champion(spec.model)
    losses = document_losses.read((context.input("losses") / document_losses.FILE).read_bytes())
    scored = Scored(losses, context.records["losses"].facts["objective"], spec.promote)
    found = judge(store, champion, scored, partial(_asked, context, store))
    version = _added(context, store, scored, found)
    alias = CHAMPION if spec.promote.approve == "automatic" else CANDIDATE
    if found.is_proved:
        store.promote(
            version,
            expected=champion,
            reason=found.verdict.reason,
            run=context.run.paths.run_id,
            alias=alias,
            judgement=found.facts,
        )
    told = gate.facts_of(store, version, alias if found.is_proved else None, found.facts)
    return {**told, "metric": losses.metric}


def _scores(losses: DocumentLosses) -> dict[str, float]:
    """By metric; nothing where there are no documents."""
    return {} if losses.score is None else {losses.metric: losses.score}


def _read(
    context: StageContext,
    model: Path,
    texts: Sequence[str],
    objective: Objective,
    sequence_length: int,
    stored: Mapping[Path, str] | None = None,
) -> DocumentLosses:
    """What a model's folder loses on texts, found out on one worker."""
    worker, execution = whole_model_worker(context.run.execution.trials)
    work = LossWork(model, objective, sequence_length, tuple(texts), execution)
    function = context.exchange(stored).mapped(document_losses.measure)
    (found,) = context.run.cluster.map(function, [work], worker, context.log)
    return found  # type: ignore[no-any-return]


def _added(context: StageContext, store: ModelStore, scored: Scored, found: Judgement) -> Version:
    """The model as a version, with what is written about it."""
    spec, losses = context.spec(PromoteBaseSpec), scored.losses
    documents = model_card.base_documents(context, losses.unit, found.facts)
    with _folder(context) as folder:
        return store.add(
            spec.model,
            folder,
            fingerprint=context.step.inputs["pretrain"].fingerprint,
            attempt=context.records["pretrain"].attempt,
            task={},
            scores=_scores(losses),
            more={
                "metric": losses.metric,
                "objective": scored.objective,
                "sequence_length": context.records["losses"].facts["sequence_length"],
                "promote": _rule(context),
                "judgement": found.facts,
            },
            documents=documents,
        )


def _asked(context: StageContext, store: ModelStore, champion: Version) -> DocumentLosses:
    """What a champion loses on documents that it was not judged on."""
    facts, folder = store.facts(champion), store.verified(champion)
    texts = json.loads((context.input("losses") / DOCUMENTS).read_text(encoding="utf-8"))
    stored = {folder: store.files(champion)}
    return _read(context, folder, texts, facts["objective"], facts["sequence_length"], stored)


def _rule(context: StageContext) -> dict[str, Any]:
    return context.spec(PromoteBaseSpec).promote.model_dump(mode="json")


def _validation_shards(context: StageContext) -> Iterator[Path]:
    names = corpus.names_of(context.records["corpus"].files, corpus.VALIDATION)
    return map(context.stream("corpus", keep=_SHARDS_KEPT), names)


@contextmanager
def _folder(context: StageContext) -> Iterator[Path]:
    """What a version holds: the model, and what it loses.

    Not what it branched off to, nor what a version of another store has beside its model.
    """
    folder = context.attempt.work / "model"
    folder.mkdir(parents=True)
    try:
        for path in context.input("pretrain").iterdir():
            if path.is_file() and model_files.is_plain(path) and path.name not in _NOT_OF_A_MODEL:
                _linked(path, folder / path.name)
        losses = context.input("losses") / document_losses.FILE
        shutil.copyfile(losses, folder / document_losses.FILE)
        yield folder
    finally:
        shutil.rmtree(folder)


def _linked(source: Path, target: Path) -> None:
    """The same file where that is possible: weights are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
