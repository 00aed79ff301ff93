"""The steps `report` and `track`: what others see of a run. Both make do with what succeeded."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from workflows import history
from workflows.execution import StageContext, tracking_uri, without_secrets
from workflows.history import RunHead
from workflows.pipeline import SummarySpec, TrackSpec

logger = logging.getLogger(__name__)


def report(context: StageContext) -> Mapping[str, Any]:
    """One HTML file about everything that succeeded."""
    from workflows.report import gathering  # imports matplotlib

    paths, name = context.run.paths, context.spec(SummarySpec).name
    head = history.head(paths.storage, paths.run_id) or RunHead(paths.run_id, name, {})
    steps = list(context.step.inputs)
    page = gathering.of_records(context.artifacts, head, steps, context.records)
    paths.storage.write(paths.report, page.encode())
    (context.output / "report.html").write_text(page, encoding="utf-8")
    return {"report_bytes": len(page.encode())}


def track(context: StageContext) -> Mapping[str, Any]:
    """The run, its trials and its models in MLflow; where that cannot be, a warning is all."""
    from workflows import tracking  # imports MLflow

    paths, found = context.run.paths, _curves(context)
    uri = tracking_uri(paths.storage)
    try:
        written = tracking.track(uri, paths.storage, paths.run_id, context.records.values())
    except tracking.MirrorError as error:
        logger.warning("%s", error)
        return found | {"uri": without_secrets(uri), "error": str(error)}
    return found | asdict(written)


def _curves(context: StageContext) -> dict[str, str]:
    """Where they are for TensorBoard, if somebody asked for that."""
    if not context.spec(TrackSpec).tensorboard:
        return {}
    from workflows import tensorboard  # imports tensorboardX

    paths = context.run.paths
    folder = f"{paths.directory}/tensorboard"
    tensorboard.write(paths.storage, folder, context.records.values())
    return {"tensorboard": paths.storage.url(folder)}
