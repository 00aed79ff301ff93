"""The step `branch`: a model on pretraining's way, taken while that goes on."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

from trainers import branches
from trainers.errors import DataError
from workflows.artifacts import OUTPUT, WORK, attempts_folder
from workflows.execution import StageContext
from workflows.ledger import stem_of
from workflows.pretraining import CHECKPOINTS
from workflows.probing import BranchSpec

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0


def take(context: StageContext) -> Mapping[str, Any]:
    """The model of a branch, as soon as any attempt at pretraining has left it whole.

    It waits for that; whoever runs the pipeline ends it when pretraining has failed.

    Raises:
        DataError: pretraining has ended, and left none.
    """
    spec = context.spec(BranchSpec)
    while True:
        for place in _places(context, branches.folder_of(spec.start_step)):
            if _is_taken(context, place):
                facts = branches.published(context.output)
                assert facts is not None  # it has just been looked at
                (context.output / branches.PUBLISHED).unlink()
                logger.info("took %s", place)
                return {**facts, "tokens": spec.tokens}
        if "pretrain" in context.records:
            raise DataError(
                f"the finished {context.step.inputs['pretrain'].name} has no branch of step "
                f"{spec.start_step}: it was adopted, or made by an earlier version; compute it "
                "anew with --force pretrain, or leave the section probe out"
            )
        time.sleep(_LOOK_EVERY_S)


def _places(context: StageContext, folder: str) -> Iterator[str]:
    """Where a branch may be: with every attempt at pretraining, the newest first."""
    pretrain = context.step.inputs["pretrain"]
    attempts = attempts_folder(pretrain.kind, stem_of(pretrain.fingerprint))
    storage = context.run.paths.storage
    for attempt in sorted(storage.names(attempts), reverse=True):
        for part in (f"{WORK}/{CHECKPOINTS}", OUTPUT):
            yield f"{attempts}/{attempt}/{part}/{folder}"


def _is_taken(context: StageContext, place: str) -> bool:
    """Copy a branch's folder; False where it is not whole, or goes meanwhile."""
    storage = context.run.paths.storage
    if not storage.exists(f"{place}/{branches.PUBLISHED}"):
        return False
    shutil.rmtree(context.output)
    try:
        if storage.is_local:
            shutil.copytree(storage.path(place), context.output)
        else:
            context.output.mkdir()
            storage.download(place, context.output)
    except (FileNotFoundError, shutil.Error):  # the attempt ended, and cleaned up behind itself
        context.output.mkdir(exist_ok=True)
        return False
    return branches.published(context.output) is not None
