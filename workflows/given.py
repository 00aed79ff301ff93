"""The step `base`: a model that is there already, as the base of fine-tuning."""

from collections.abc import Mapping
from typing import Any

from trainers import bases
from workflows.execution import StageContext
from workflows.models import ModelStore
from workflows.pipeline import BaseSpec


def run(context: StageContext) -> Mapping[str, Any]:
    """A model that is there already, as the base of fine-tuning."""
    base = context.spec(BaseSpec).base
    if base.store is None:
        return bases.take_in(context.run.base / str(base.from_), context.output)
    store = ModelStore(context.run.paths.storage)
    version = store.resolve(base.store)
    return {"version": base.store, **bases.take_in(store.verified(version), context.output)}
