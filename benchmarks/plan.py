"""How long it takes to see that everything is done: plan, listings, status, memory.

    python benchmarks/plan.py --results benchmarks/results

Finished steps are written by the library's own commit, without running anything. Planning is timed
from the step specs on: fingerprints, the look at the ledger, the verdicts. Peers have no such
command over a graph of this size that is comparable, so the figures stand against the goals.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import boto3
from machine import describe_machine
from moto.server import ThreadedMotoServer

from workflows import planning
from workflows.execution import RunPaths
from workflows.journal import Journal
from workflows.ledger import Ledger, Position, Record
from workflows.pipeline import CustomSpec
from workflows.planning import State
from workflows.steps import CUSTOM, Step
from workflows.storage import Storage

REPEATS = 5
STATUS_STEPS = 1_000
S3_STEPS = 3_000


def graph(count: int) -> list[Step]:
    """Steps of the user's own that need nothing."""
    return [
        Step(
            name=f"step{number}",
            kind=CUSTOM,
            version=1,
            spec=CustomSpec(uses="noop:step", files={}, spec={"number": number}),
        )
        for number in range(count)
    ]


def finish(where: Storage, steps: list[Step]) -> None:
    """Write what a run leaves in the ledger, without fsync: only reading is measured here."""
    ledger = Ledger(where)
    for step in steps:
        record = Record(
            name=step.name,
            kind=step.kind,
            version=step.version,
            fingerprint=step.fingerprint,
            spec={},
            inputs={},
            outside={},
            attempt="000001-x",
            facts={"value": 1},
            files={},
            run="run",
            finished_at="",
            elapsed_s=0.0,
            versions={},
        )
        ledger.commit(step, Position(), record)


def planned(where: Storage, count: int) -> float:
    """Seconds for a plan of `count` finished steps, from their specs on."""
    steps = graph(count)
    start = time.perf_counter()
    plan = planning.plan(steps, Ledger(where))
    seconds = time.perf_counter() - start
    assert set(plan.states.values()) == {State.REUSED}
    return seconds


def memory_per_step(where: Storage, count: int) -> float:
    """Bytes that a plan holds for a step, beside the step itself."""
    steps = graph(count)
    for step in steps:
        step.ref  # noqa: B018 -- computed once, and part of the step
    tracemalloc.start()
    plan = planning.plan(steps, Ledger(where))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.states) == count
    return held / count


@contextmanager
def object_store() -> Iterator[tuple[Storage, Callable[[], int]]]:
    """A storage on an S3 server in this process, and the number of its listing calls so far."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="bucket")
    where = Storage.at(f"s3://bucket/{uuid.uuid4().hex}")
    where.names("")  # connects
    listings: list[str] = []
    events = where._files._s3.meta.events  # noqa: SLF001 -- counted below the library
    events.register("before-call.s3.ListObjectsV2", lambda **_: listings.append("list"))
    try:
        yield where, lambda: len(listings)
    finally:
        server.stop()


def status_seconds(where: Storage) -> tuple[float, float]:
    """Seconds of `pretune status`, and of Python's start and imports in it."""
    steps = graph(STATUS_STEPS)
    paths = RunPaths(where, "bench-20260101-000000-abcd")
    journal = Journal(where, paths.events, "run")
    for step in steps:
        for state in ("waiting", "running", "done"):
            journal.append("step", step=step.name, state=state, facts={"value": 1})
    journal.flush()
    head = {s.name: [s.kind, s.fingerprint] for s in steps}
    where.create(
        f"{paths.directory}/plan.json",
        json.dumps({"schema_version": 2, "pipeline": "bench", "steps": head}).encode(),
    )
    pretune = str(Path(sys.executable).with_name("pretune"))
    whole = [pretune, "status", "--storage", where.root]
    imports = [sys.executable, "-c", "import workflows.cli"]
    return (
        median(_seconds(whole) for _ in range(REPEATS)),
        median(_seconds(imports) for _ in range(REPEATS)),
    )


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(folder: Path) -> list[str]:
    """All figures, as rows of the table."""
    local = Storage.at(folder / "local")
    rows = []
    for count in (1_000, 10_000):
        finish(local, graph(count))
        seconds = median(planned(local, count) for _ in range(REPEATS))
        goal = "1 s" if count == 10_000 else ""
        rows.append(f"| plan, {count:,} finished steps, local disk | {seconds:.3f} s | {goal} |")
    for count in (1_000, 10_000):
        held = memory_per_step(local, count)
        rows.append(f"| held by that plan, {count:,} steps | {held:.0f} bytes a step | 1 KB |")
    with object_store() as (remote, listings):
        finish(remote, graph(S3_STEPS))
        before = listings()
        planned(remote, S3_STEPS)
        calls = (listings() - before) / S3_STEPS * 1_000
        rows.append(f"| listing calls a 1,000 steps, S3, {S3_STEPS:,} steps | {calls:.2f} | 3 |")
    whole, imports = status_seconds(Storage.at(folder / "status"))
    rows.append(
        f"| `status`, {STATUS_STEPS:,} steps, Python's start included | {whole:.2f} s | 1 s |"
    )
    rows.append(f"| the same without start and imports | {whole - imports:.2f} s | 0.5 s |")
    return rows


def main() -> None:
    """Measure, print, write `plan-DATE.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
        machine = describe_machine(Path(folder))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        f"# Plan and status, {date}",
        "",
        f"`python benchmarks/plan.py`, medians of {REPEATS}; S3 is moto's server, in this process.",
        "",
        *machine,
        "",
        "| what | found | goal |",
        "|---|---|---|",
        *rows,
        "",
    ]
    path = options.results / f"plan-{date}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
