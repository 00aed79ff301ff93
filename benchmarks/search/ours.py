"""Pretune: both tasks' searches at the same time, as a run with two tasks has them.

A run computes each step in a process of its own, and so it is here: Ray Tune keeps its registry by
process, and two searches that begin at once in two threads break it ("dictionary changed size
during iteration"). The two processes import what they need and join this process' Ray before the
clock starts, as the peers do. Each search has one slot, a process that is kept for all its trials,
and the other's, too, once that has ended; as in a run it learns of that from the journal.
"""

import multiprocessing
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any

import ray
from counted import CountedFineTuning
from regimes import CPUS, TASKS, Regime
from subject import (
    Arguments,
    Ledger,
    Measurement,
    Trial,
    join_ray,
    local_ray,
    new_ledger,
    parse_arguments,
)
from work import BASE, data_of, read_inputs

from cluster import trials  # noqa: F401 -- the peers, too, import Ray Tune before the clock starts
from cluster.config import RetryConfig, SearchConfig, TrialConfig
from cluster.interface import SearchPlan, TrialResult
from cluster.ray_cluster import RayCluster
from trainers import features
from trainers.courses import Courses
from trainers.task_config import MAY_CHANGE
from trainers.task_inputs import TaskInputs
from workflows.journal import DRIVER, Journal, Tail
from workflows.planning import State
from workflows.shares import Search, Share
from workflows.storage import Storage

EVENTS = "events"


def inputs_of(arguments: Arguments, task: str, cluster: RayCluster) -> TaskInputs:
    """What trials share: for heads with the base's features, as the step `features` makes them."""
    regime, shared = arguments.regime, arguments.shared
    inputs = read_inputs(shared, regime, task)
    if regime.method != "head":
        return inputs
    pooling = features.pooling_of(inputs)
    assert pooling is not None
    folder = arguments.folder / f"{task}-features"
    folder.mkdir()
    data = data_of(shared, regime, task)
    workers = CPUS // len(TASKS)
    works = features.works(inputs, pooling, shared / BASE, data, folder, workers=workers)
    cluster.map(features.compute, works, TrialConfig(), arguments.folder / "features.log")
    features.write_index(folder, pooling, works)
    return replace(inputs, features=features.opened(folder.joinpath))


def plan_of(regime: Regime, task: str, inputs: TaskInputs, share: Share) -> SearchPlan:
    """What `workflows.tuning` makes of a task's section."""
    space: dict[str, Any] = {
        "method": regime.method,
        "learning_rate": list(regime.learning_rates),
        "epochs": list(regime.epochs),
    }
    if regime.schedule != "linear":
        space["schedule"] = regime.schedule
    config = {"trials": len(regime.points()), "searcher": "grid", "space": space}
    return SearchPlan(
        SearchConfig.model_validate(config),
        TrialConfig(),
        name=f"search_{task}",
        metric=inputs.kind.task.metric,
        lower_is_better=inputs.kind.task.lower_is_better,
        max_epochs=max(regime.epochs),
        slots=share,
        course=Courses(len(inputs.train)),
        may_change=MAY_CHANGE,
    )


def search(arguments: Arguments, ledger: Ledger, task: str) -> list[Trial]:
    """The trials of one task."""
    cluster = RayCluster(RetryConfig())
    inputs = inputs_of(arguments, task, cluster)
    storage = Storage.at(arguments.folder)
    searches = [Search((name,), frozenset()) for name in TASKS]
    share = Share(cluster, TrialConfig(), searches, task, Tail(storage, EVENTS, writer=DRIVER))
    plan = plan_of(arguments.regime, task, inputs, share)
    directory = arguments.folder / task
    directory.mkdir()
    results = cluster.run_trials(
        partial(CountedFineTuning, ledger=ledger),
        inputs,
        plan,
        directory=str(directory),
        log=arguments.folder / f"{task}.log",
        on_result=ignore,
    )
    Journal(storage, EVENTS, DRIVER).append("step", step=task, state=State.DONE)
    return [trial_of(task, plan.metric, result) for result in results]


def trial_of(task: str, metric: str, result: TrialResult) -> Trial:
    """What the other subjects tell of a trial.

    Raises:
        RuntimeError: it did not finish.
    """
    if result.status != "finished":
        raise RuntimeError(f"{task}, {result.hyperparameters}: {result.status}; {result.error}")
    point = {name: result.hyperparameters[name] for name in ("learning_rate", "epochs")}
    last = result.history[-1]
    return Trial(task, point, last[metric], last["loss"])


def ignore(trial_id: str, metrics: object) -> None:
    """Nobody watches."""


def join(address: str, all_ready: Barrier) -> None:
    """Make a process ready for a search."""
    join_ray(address)
    all_ready.wait()


def main() -> None:
    """Search and print the measurement."""
    arguments, found = parse_arguments(__doc__), Measurement()
    ledger = new_ledger(arguments.folder)
    context = multiprocessing.get_context("spawn")
    all_ready = context.Barrier(len(TASKS) + 1)
    with local_ray():
        address = ray.get_runtime_context().gcs_address
        with context.Pool(len(TASKS), join, (address, all_ready)) as processes:
            all_ready.wait()
            with found.timed():
                of_tasks = processes.map(partial(search, arguments, ledger), TASKS, chunksize=1)
            processes.close()
            processes.join()  # to terminate them would have Ray print where they were
        found.trials = [trial for trials_of_task in of_tasks for trial in trials_of_task]
        found.bytes_written = ledger.total()
    found.print_line()


if __name__ == "__main__":
    main()
