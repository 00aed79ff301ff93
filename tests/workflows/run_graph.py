"""A run of own steps in a process of its own: `run_graph.py STORAGE RUN LEASE_S BEGUN PATH`."""

import sys

from own_steps import context, own_step

from cluster.local import LocalCluster
from workflows import planning, runner
from workflows.artifacts import Artifacts
from workflows.journal import Journal
from workflows.steps import Step
from workflows.storage import Storage


def graph(begun: str, path: str) -> list[Step]:
    """A step that waits for a file, and one that reads it."""
    waits = own_step("waits", function="wait_for_file")
    # What it waits for is where, not what: the same step for all runs.
    waits.spec.spec.update(path=path, begun=begun)
    return [waits, own_step("reads", waits, function="nothing")]


def main(place: str, run_id: str, lease_s: str, begun: str, path: str) -> None:
    """Run the graph and print the states."""
    where, steps = Storage.at(place), graph(begun, path)
    result = runner.run(
        steps,
        planning.plan(steps, Artifacts(where).ledger),
        context(where, LocalCluster(), run_id, lease_s=float(lease_s)),
        Journal(where, f"runs/{run_id}/events", "run"),
    )
    print(" ".join(str(state) for state in result.states.values()))


if __name__ == "__main__":
    main(*sys.argv[1:])
