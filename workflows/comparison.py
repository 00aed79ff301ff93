"""Two runs side by side: what was asked of them, how good their models are, how long they took."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from trainers import task_data
from workflows import final, history
from workflows.artifacts import Artifacts
from workflows.config import ConfigError, PipelineConfig
from workflows.history import RunHead
from workflows.judgement import Tested
from workflows.ledger import Record
from workflows.significance import Gain
from workflows.steps import StepRef
from workflows.storage import Storage


@dataclass(frozen=True)
class Score:
    """A task's model of each run on its test rows; None where there is none."""

    task: str
    metric: str
    first: float | None
    second: float | None
    gain: Gain | None = None
    """Of the second over the first, row by row; None where they were tested on other rows."""

    def told(self) -> dict[str, Any]:
        """For people and machines."""
        gain = {} if self.gain is None else asdict(self.gain)
        if gain:
            gain = {"gain": gain.pop("value"), **gain}
        return {"task": self.task, "metric": self.metric} | {
            "a": self.first,
            "b": self.second,
            **{name: value for name, value in gain.items() if math.isfinite(value)},
        }


@dataclass(frozen=True)
class Comparison:
    """The first run is A, the second B."""

    config: list[dict[str, Any]]
    """Values that differ: `key`, `a`, `b`."""
    scores: list[Score]
    seconds: list[dict[str, Any]]
    """Of each step: `step`, `a`, `b`, and whether both used the `same` result."""


def compare(where: Storage, first: str, second: str) -> Comparison:
    """What changed from one run of a storage to another.

    Raises:
        ConfigError: one of them left nothing to compare.
    """
    sides = [_Side.of(where, run_id) for run_id in (first, second)]
    a, b = sides
    names = list(dict.fromkeys([*a.head.steps, *b.head.steps]))
    return Comparison(
        config=list(_differences(a.config, b.config)),
        scores=[
            _score(name.rpartition(".")[0], a, b)
            for name in names
            if "final" in {side.kind(name) for side in sides}
        ],
        seconds=[
            {
                "step": name,
                "a": a.seconds(name),
                "b": b.seconds(name),
                "same": a.head.steps.get(name) == b.head.steps.get(name),
            }
            for name in names
        ],
    )


@dataclass(frozen=True)
class _Side:
    head: RunHead
    config: Mapping[str, Any]
    artifacts: Artifacts
    records: Mapping[str, Record]

    @classmethod
    def of(cls, where: Storage, run_id: str) -> "_Side":
        head = history.head(where, run_id)
        if head is None:
            raise ConfigError(f"no run {run_id!r} in {where.root}, or it did not begin")
        artifacts = Artifacts(where)
        steps = [StepRef(name, *identity) for name, identity in head.steps.items()]
        found = {step.name: artifacts.find(step) for step in steps}
        records = {name: record for name, record in found.items() if record is not None}
        text = where.read(f"runs/{run_id}/{history.PIPELINE}")
        return cls(head, yaml.safe_load(text), artifacts, records)

    def kind(self, name: str) -> str | None:
        """Of a step; None where the run has none of this name."""
        kind, _ = self.head.steps.get(name, (None, None))
        return kind

    def seconds(self, name: str) -> float | None:
        """That a step took, in whichever run computed it."""
        record = self.records.get(name)
        return record.elapsed_s if record else None

    def tested(self, task: str) -> Tested | None:
        """The model that a task was finished with, and what it said of its test rows."""
        data, trained = (self.records.get(f"{task}.{kind}") for kind in ("data", "final"))
        if data is None or trained is None:
            return None
        folder = self.artifacts.output(trained) / final.MODEL
        section = PipelineConfig.model_validate(self.config).tasks[task]
        return Tested.of(
            lambda name: (folder / name).read_bytes(),
            section.task,
            task_data.digest_of_test(self.artifacts.output(data)),
            section.promote,
        )


def _score(task: str, a: _Side, b: _Side) -> Score:
    first, second = a.tested(task), b.tested(task)
    some = second or first
    metric = some.kind.task.metric if some else ""
    is_comparable = (
        first is not None
        and second is not None
        and first.digest == second.digest
        and list(first.kind.labels) == list(second.kind.labels)
    )
    gain = second.rival("A", first.said).gain if is_comparable and first and second else None
    return Score(task, metric, _value(first), _value(second), gain)


def _value(tested: Tested | None) -> float | None:
    return None if tested is None else tested.evaluation("", tested.said).score


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    first, second = dict(_flat(a)), dict(_flat(b))
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            yield {"key": key, "a": first.get(key), "b": second.get(key)}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
