"""When steps ran and what they left, from their records. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from workflows.ledger import Record


@dataclass(frozen=True)
class Span:
    """When a step ran."""

    name: str
    begin_s: float
    """Since the first step of the run began."""
    elapsed_s: float

    @property
    def end_s(self) -> float:
        """Since the first step of the run began."""
        return self.begin_s + self.elapsed_s


@dataclass(frozen=True)
class Cost:
    """What a step took and what it left."""

    name: str
    elapsed_s: float
    share: float
    """Of the seconds of all steps."""
    output_bytes: int
    files: int


def spans(records: Iterable[Record], run: str | None) -> list[Span]:
    """Of the steps that a run computed itself, in the order in which they began.

    A record tells the second in which its step ended, so a span may be off by one.
    """
    own = [record for record in records if record.run == run]
    if not own:
        return []
    first = min(map(_began_at, own))
    found = [
        Span(record.name, (_began_at(record) - first).total_seconds(), record.elapsed_s)
        for record in own
    ]
    return sorted(found, key=lambda span: (span.begin_s, span.end_s))


def costs(records: Sequence[Record]) -> list[Cost]:
    """Of each step, in the order given."""
    total_s = sum(record.elapsed_s for record in records)
    return [
        Cost(
            record.name,
            record.elapsed_s,
            record.elapsed_s / total_s if total_s else 0.0,
            sum(int(file["size"]) for file in record.files.values()),
            len(record.files),
        )
        for record in records
    ]


def gang_s(facts: Mapping[str, Any]) -> tuple[int, float] | None:
    """Workers of a pretraining and the seconds they trained; None where nobody wrote them down.

    Records tell no devices: what a worker was, a CPU or a GPU, is not known here.
    """
    if not {"world_size", "training_s"} <= facts.keys():
        return None
    return int(facts["world_size"]), float(facts["training_s"])


def _began_at(record: Record) -> datetime:
    return datetime.fromisoformat(record.finished_at) - timedelta(seconds=record.elapsed_s)
