"""Steps before their inputs are known, and the order in which they can be built. Pure."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from cluster.config import WorkerConfig
from trainers.config import Schema
from workflows.config import ConfigError
from workflows.steps import Step

# Raise a stage's number when its output changes for the same spec and inputs. The user's own steps
# bring theirs with them.
STAGE_VERSIONS = {
    "data": 3,
    "corpus": 2,
    "tokenizer": 2,
    "tokens": 2,
    "pretrain": 3,
    "base": 1,
    "features": 1,
    "probe": 1,
    "branch": 1,
    "best_probe": 1,
    "tune": 6,
    "final": 9,
    "promote": 3,
    "losses": 1,
    "promote_base": 1,
    "report": 2,
    "track": 1,
}


@dataclass(frozen=True)
class Draft:
    """A step before its inputs are known."""

    name: str
    kind: str
    spec: Schema
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Names of steps, by the name the stage knows them by."""
    outside: Mapping[str, str] = field(default_factory=dict)
    version: int | None = None
    runs_on_failure: bool = False
    resources: WorkerConfig | None = None

    def step(self, built: Mapping[str, Step]) -> Step:
        """The step, once its inputs are built."""
        return Step(
            name=self.name,
            kind=self.kind,
            version=self.version or STAGE_VERSIONS[self.kind],
            spec=self.spec,
            inputs={key: built[name].ref for key, name in self.inputs.items()},
            outside=dict(self.outside),
            runs_on_failure=self.runs_on_failure,
            resources=self.resources,
        )


def in_order(drafts: Mapping[str, Draft]) -> Iterator[str]:
    """Names in the order of the drafts, but each behind its inputs."""
    place = {name: number for number, name in enumerate(drafts)}
    sorter = TopologicalSorter({name: draft.inputs.values() for name, draft in drafts.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"steps: {circle}: these steps wait for each other") from error
    names, ready = list(drafts), [place[name] for name in sorter.get_ready()]
    heapq.heapify(ready)
    while ready:
        name = names[heapq.heappop(ready)]
        yield name
        sorter.done(name)
        for following in sorter.get_ready():
            heapq.heappush(ready, place[following])
