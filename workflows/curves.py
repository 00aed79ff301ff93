"""What finished steps tell in numbers, point by point, for those that mirror it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.artifacts import output_name
from workflows.ledger import Record
from workflows.storage import Storage

TOLD = {"pretrain": "pretraining.json", "tune": "trials.json", "final": "final.json"}
"""The file that tells what a step came to, by the kind of step."""


@dataclass(frozen=True)
class Curves:
    """Of a training or a trial."""

    name: str
    params: Mapping[str, Any]
    points: Sequence[tuple[int, Mapping[str, float]]]
    """Measures by optimizer step, or by epoch."""
    has_failed: bool = False


def told(where: Storage, record: Record) -> Any:
    """What a step came to; None where it tells nothing, or where its artifact is gone."""
    if record.kind not in TOLD:
        return None
    try:
        return json.loads(where.read(f"{output_name(record)}/{TOLD[record.kind]}"))
    except FileNotFoundError:
        return None


def of(record: Record, found: Any) -> list[Curves]:
    """The curves in what a step came to; none in that of a kind that trains nothing new."""
    match record.kind:
        case "pretrain":
            return [_pretraining(record, found)]
        case "tune":
            return [_trial(record, trial) for trial in found]
    return []


def _pretraining(record: Record, found: Mapping[str, Any]) -> Curves:
    points = [*found["history"], *found.get("speeds", ())]
    by_step = [(point["optimizer_step"], point) for point in points]
    return Curves("pretrain", record.spec["pretrain"], by_step)


def _trial(record: Record, found: Mapping[str, Any]) -> Curves:
    changes = {"changes": found["changes"]} if found.get("changes") else {}
    return Curves(
        f"{record.name}.{found['trial_id']}",
        {**found["hyperparameters"], **changes},
        list(enumerate(found["history"], start=1)),
        found["status"] == "failed",
    )
