"""Pretune: no-op steps of the user's own on a local Ray with two cores, every step durable.

Durable means here: before a step counts as done, its record is created exclusively and fsynced
(the file and its folder). The whole run is timed: plan, claims, signs of life, journal, records.
`wide` and `chain` are what a pipeline file with that many `steps:` would give.
"""

import time
from pathlib import Path

from peer import Measurement, installed_versions, parse_request

from cluster.config import ClusterConfig, WorkerConfig
from cluster.interface import Cluster
from cluster.ray_cluster import connect
from workflows import planning, runner
from workflows.artifacts import Artifacts
from workflows.execution import RunContext, RunPaths
from workflows.journal import Journal
from workflows.pipeline import CustomSpec
from workflows.steps import CUSTOM, Step
from workflows.storage import Storage

NUM_CPUS = 2
WARM_UP_STEPS = 200


def own_step(name: str, *inputs: Step, function: str = "step") -> Step:
    """A step of the user's own."""
    return Step(
        name=name,
        kind=CUSTOM,
        version=1,
        spec=CustomSpec(uses=f"noop:{function}", files={}, spec={"name": name}),
        inputs={step.name: step.ref for step in inputs},
        resources=WorkerConfig(),
    )


def graph(shape: str, count: int, prefix: str) -> list[Step]:
    """The steps, each behind its inputs."""
    steps: list[Step] = []
    for index in range(count):
        inputs = steps[-1:] if shape == "chain" else []
        steps.append(own_step(f"{prefix}{index}", *inputs))
    return steps


def run(steps: list[Step], cluster: Cluster, where: Storage, run_id: str) -> None:
    """Plan and run, as `pretune run` does."""
    paths = RunPaths(where, run_id)
    context = RunContext(cluster, ClusterConfig(), paths, Path(__file__).parent, searches=())
    plan = planning.plan(steps, Artifacts(where).ledger)
    result = runner.run(steps, plan, context, Journal(where, paths.events, "run"))
    assert not result.failures, result.failures


def main() -> None:
    """Measure one shape."""
    request = parse_request(__doc__)
    where = Storage.at(request.folder)
    steps = graph(request.shape, request.steps, "step")
    with connect(ClusterConfig()) as cluster:
        starters = [own_step(f"start{n}", function="start_worker") for n in range(NUM_CPUS)]
        run(starters, cluster, where, "start")
        run(graph(request.shape, WARM_UP_STEPS, "warm"), cluster, where, "warm")
        start = time.perf_counter()
        run(steps, cluster, where, "run")
        seconds = time.perf_counter() - start
    found = Artifacts(where).ledger.positions(steps)
    Measurement(
        peer="pretune",
        shape=request.shape,
        steps=request.steps,
        seconds=seconds,
        persisted=sum(position.committed > 0 for position in found.values()),
        recorded_s=seconds,
        versions=installed_versions(["pretune", "ray"]),
    ).print_line()


if __name__ == "__main__":
    main()
