"""Dagster: the same no-op steps as ops of one job, outputs pickled by its filesystem IO manager.

What was chosen, and why (numbers: Dagster 1.13.29, 2 cores, 100 to 400 steps, ms per step):

- `execute_in_process`: one process for all steps, Dagster's fastest for steps that do nothing; the
  default executor starts a process for each. `execute_job` with `in_process_executor` took as long
  (wide 18.5 against 18.3, chain 29.2 against 27.2). In-process execution would swap the default
  IO manager for one in memory; the `FilesystemIOManager` given to the job stays.
- Storage is the default of a fresh DAGSTER_HOME: SQLite, a connection and a commit for each event
  with `synchronous = FULL`, so the event log is on disk when the call returns. Outputs are plain
  writes. `DAGSTER_EVENT_BATCH_SIZE` made no difference: it batches asset events, which ops do not
  have. Nor did a no-op compute log manager.
- The console logger is at ERROR, so formatting events for a terminal is not measured. Telemetry
  is off.

The job is built before the clock starts, as a user's code location has loaded it.
"""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from peer import Measurement, Request, count_filled_files, installed_versions, parse_request

if TYPE_CHECKING:
    from dagster import JobDefinition

WARM_UP_STEPS = 3


def configure(request: Request) -> Path:
    """Write a DAGSTER_HOME and name it in the environment; where results will be."""
    home = request.folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    os.environ.update({"DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1"})
    return request.folder / "results"


def build_job(shape: str, steps: int, results: Path) -> "JobDefinition":
    """A job of `steps` no-op ops whose outputs go to `results`."""
    from dagster import FilesystemIOManager, in_process_executor, job, op

    @op
    def first() -> int:
        return 1

    @op
    def following(previous: int) -> int:
        return previous + 1

    @job(
        executor_def=in_process_executor,
        resource_defs={"io_manager": FilesystemIOManager(base_dir=str(results))},
        config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    def graph() -> None:
        value = first.alias("step_0")()
        for index in range(1, steps):
            name = f"step_{index}"
            value = first.alias(name)() if shape == "wide" else following.alias(name)(value)

    return graph


def count_records(home: Path, run_id: str) -> int:
    """Steps that the run's event log on disk has as succeeded."""
    path = home / "history" / "runs" / f"{run_id}.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        query = "select count(*) from event_logs where dagster_event_type = 'STEP_SUCCESS'"
        return database.execute(query).fetchone()[0]


def main() -> None:
    """Measure one shape."""
    request = parse_request(__doc__)
    results = configure(request)
    from dagster import DagsterInstance

    with DagsterInstance.get() as instance:
        build_job(request.shape, WARM_UP_STEPS, results).execute_in_process(instance=instance)
        graph = build_job(request.shape, request.steps, results)
        start = time.perf_counter()
        result = graph.execute_in_process(instance=instance)
        seconds = time.perf_counter() - start
        assert result.success
        assert count_records(request.folder / "home", result.run_id) == request.steps
    Measurement(
        peer="dagster",
        shape=request.shape,
        steps=request.steps,
        seconds=seconds,
        persisted=count_filled_files(results / result.run_id),
        recorded_s=seconds,
        versions=installed_versions(["dagster", "sqlalchemy", "pydantic"]),
    ).print_line()


if __name__ == "__main__":
    main()
