"""Prefect 3: the same no-op steps as tasks with persisted, cacheable results on local disk.

What was chosen, and why (numbers: Prefect 3.8.8, 2 cores, 400 steps, ms per step):

- `persist_result=True` and the cache policy `INPUTS + TASK_SOURCE`: a second run reuses every
  result, as Prefect documents it; the default policy has the run's id in the key and would not.
- `wide`: `.submit()` on a `ThreadPoolTaskRunner` with two workers, the two steps at a time that
  Ray has. The default (a thread per task) took 5.7, two workers 5.2, one worker 4.2: the
  interpreter lock makes threads a cost for steps that do nothing.
- `chain`: each task is called with the value of the one before, Prefect's plain way to write a
  sequence, 3.8. Dependent futures (`.submit()` of a future) took 11.7 to 17.8.
- The server is Prefect's own temporary one (`PREFECT_SERVER_EPHEMERAL_ENABLED`): its API in a
  process of its own, with SQLite in a fresh PREFECT_HOME and without the scheduler and the UI. It
  is started by a warm-up flow before the clock starts.
- The flow's heartbeat is off: its thread sleeps in whole seconds and is joined at the end, which
  rounds a flow's time up to the next second.
- Log level WARNING, no logs to the API, no analytics, no version check.

Prefect's client runs the tasks and sends their states to the server in the background (its
"client-side orchestration"). `seconds` ends when the flow returns: all results are on disk then,
most run records are not. `recorded_s` is when the database had every task run as completed. The
server records one task run at a time by default, which gives the best `seconds`. With
`PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE` and `..._READ_BATCH_SIZE` at 100 (set them in
the environment to try it) 1000 steps were recorded after 10.8 s instead of 25.5 (wide) and 5.5
instead of 23.9 (chain), while `seconds` went from 4.8 to 5.9 and from 3.9 to 4.7 (one run each).

Neither results nor records are synced to the disk at each step (plain writes; SQLite with
`synchronous = NORMAL`), so a power cut can take the last of them.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from peer import Measurement, Request, count_filled_files, installed_versions, parse_request

MAX_WORKERS = 2
WARM_UP_STEPS = 8
RECORDS_TIMEOUT_S = 600.0


def configure(request: Request) -> Path:
    """Set Prefect's environment before its import; where its results will be."""
    home, storage = request.folder / "home", request.folder / "results"
    os.environ.update(
        {
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(home),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(storage),
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
        }
    )
    os.environ.pop("PREFECT_API_URL", None)
    return storage


def build_flow(shape: str) -> Callable[[int, int], int]:
    """A flow of (number of steps, first index) that gives the last step's value."""
    from prefect import flow, task
    from prefect.cache_policies import INPUTS, TASK_SOURCE
    from prefect.task_runners import ThreadPoolTaskRunner

    @task(persist_result=True, cache_policy=INPUTS + TASK_SOURCE)
    def step(previous: int) -> int:
        return previous + 1

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=MAX_WORKERS))
    def wide(steps: int, first: int) -> int:
        futures = [step.submit(first + index) for index in range(steps)]
        return [future.result() for future in futures][-1]

    @flow
    def chain(steps: int, first: int) -> int:
        value = first
        for _ in range(steps):
            value = step(value)
        return value

    return wide if shape == "wide" else chain


def count_records(home: Path) -> int:
    """Task runs that Prefect's database has as completed."""
    with closing(sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True)) as database:
        query = "select count(*) from task_run where state_type = 'COMPLETED'"
        return database.execute(query).fetchone()[0]


def wait_for_records(home: Path, count: int) -> None:
    """Return when the database has `count` completed task runs.

    Raises:
        TimeoutError: it does not get there.
    """
    deadline = time.monotonic() + RECORDS_TIMEOUT_S
    while (found := count_records(home)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the database has {found} of {count} task runs; see FOLDER/home")
        time.sleep(0.2)


def main() -> None:
    """Measure one shape."""
    request = parse_request(__doc__)
    storage = configure(request)
    home = request.folder / "home"
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        graph = build_flow(request.shape)
        graph(WARM_UP_STEPS, -1_000_000)  # other inputs than the measured steps', so no cache hits
        wait_for_records(home, WARM_UP_STEPS)
        persisted_before = count_filled_files(storage)
        start = time.perf_counter()
        value = graph(request.steps, 0)
        seconds = time.perf_counter() - start
        assert value == request.steps
        persisted = count_filled_files(storage) - persisted_before
        wait_for_records(home, WARM_UP_STEPS + request.steps)
        recorded_s = time.perf_counter() - start
    Measurement(
        peer="prefect",
        shape=request.shape,
        steps=request.steps,
        seconds=seconds,
        persisted=persisted,
        recorded_s=recorded_s,
        versions=installed_versions(["prefect", "fastapi", "uvicorn", "sqlalchemy", "pydantic"]),
    ).print_line()


if __name__ == "__main__":
    main()
