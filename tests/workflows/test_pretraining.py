"""What becomes of the micro-batch when memory runs out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_pipeline, write_pipeline

from cluster.config import GangConfig, WorkerRange
from cluster.interface import Metrics, Reporter, TaskFailedError, WorkerLostError
from cluster.local import LocalCluster
from workflows import runner
from workflows.config import load_config
from workflows.journal import read
from workflows.planning import Selection, State
from workflows.pretraining import Again, Fail, after_out_of_memory
from workflows.session import Session

BEFORE = ("corpus", "tokenizer", "tokens")


@pytest.fixture
def pipeline(tmp_path: Path) -> dict[str, Any]:
    """Whose corpus needs no task."""
    data = tiny_pipeline(tmp_path)
    data["corpus"]["held_out"] = []
    return data


@pytest.mark.parametrize(
    ("size", "share", "micro_batch_size", "expected"),
    [
        (8, 8, "auto", Again(4)),
        (2, 8, "auto", Again(1)),
        (12, 12, "auto", Again(6)),
        (9, 9, "auto", Again(3)),  # a divisor of the share
        (7, 7, "auto", Again(1)),
    ],
)
def test_half_the_micro_batch_is_tried(
    size: int, share: int, micro_batch_size: Any, expected: Again
) -> None:
    gang = GangConfig(micro_batch_size=micro_batch_size)
    assert after_out_of_memory("no memory", size=size, share=share, gang=gang) == expected


@pytest.mark.parametrize(
    ("size", "micro_batch_size", "told"),
    [
        (1, "auto", "even with micro-batches of one sequence; shorten pretrain.sequence_length"),
        (4, 4, "with cluster.pretrain.micro_batch_size 4; lower it, or set it to auto"),
    ],
)
def test_what_cannot_be_halved_fails_with_a_way_out(
    size: int, micro_batch_size: Any, told: str
) -> None:
    gang = GangConfig(micro_batch_size=micro_batch_size)
    found = after_out_of_memory("no memory", size=size, share=8, gang=gang)
    assert isinstance(found, Fail)
    assert told in found.reason


class Exhausted(LocalCluster):
    """A gang that runs out of memory with more than one sequence, and is lost once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.lose_next = True

    def run_gang(
        self,
        function: Callable[[Reporter], None],
        gang_config: GangConfig,
        *,
        name: str,
        directory: str,
        log: Path,
        on_report: Callable[[Metrics], None],
    ) -> None:
        size = function.function.args[0].micro_batch_size  # type: ignore[attr-defined]
        self.sizes.append(size)
        if size > 1:
            raise TaskFailedError("OutOfMemoryError", "out of memory: 3 GB")
        if self.lose_next:
            self.lose_next = False
            raise WorkerLostError("node died")
        super().run_gang(
            function, gang_config, name=name, directory=directory, log=log, on_report=on_report
        )


def test_size_that_fitted_is_found_and_a_later_attempt_begins_with_it(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    pipeline["cluster"] = {"retry": {"delay_s": 0}}
    session = Session.open(load_config(write_pipeline(tmp_path, pipeline)), tmp_path)
    cluster = Exhausted()
    plan = session.plan(Selection(only=frozenset({*BEFORE, "pretrain"})))
    result = runner.run(session.steps, plan, session.context(cluster), session.journal)
    assert result.states["pretrain"] is State.DONE
    assert cluster.sizes == [4, 2, 1, 1]
    events = read(session.paths.storage, session.paths.events)
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert notes == [f"out of memory: micro-batches of {size} from here on" for size in (2, 1)]
    step = next(step for step in session.steps if step.name == "pretrain")
    record = session.artifacts.find(step)
    assert record is not None
    assert record.facts["micro_batch_size"] == 1


def test_gang_whose_size_may_change_begins_with_the_smallest_share(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    pipeline["cluster"] = {"pretrain": {"workers": {"min": 1, "max": 2}}}
    session = Session.open(load_config(write_pipeline(tmp_path, pipeline)), tmp_path)
    assert session.config.cluster.pretrain.workers == WorkerRange(min=1, max=2)
    cluster = Exhausted()
    cluster.lose_next = False
    plan = session.plan(Selection(only=frozenset({*BEFORE, "pretrain"})))
    runner.run(session.steps, plan, session.context(cluster), session.journal)
    assert cluster.sizes == [2, 1]


_LIMITED = """
import json, resource, sys
from pathlib import Path
from cluster.local import LocalCluster
from trainers import pretrain  # what it loads is not in the limit
from workflows import runner
from workflows.config import load_config
from workflows.planning import Selection
from workflows.session import Session

class Limited(LocalCluster):
    def run_gang(self, *args, **kwargs):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + int(sys.argv[2])
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        try:
            super().run_gang(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

pipeline = Path(sys.argv[1])
session = Session.open(load_config(pipeline), pipeline.parent)
only = frozenset({"corpus", "tokenizer", "tokens", "pretrain"})
plan = session.plan(Selection(only=only))
result = runner.run(session.steps, plan, session.context(Limited()), session.journal)
step = next(step for step in session.steps if step.name == "pretrain")
record = session.artifacts.find(step)
causes = [failure.cause for failure in result.failures]
print(json.dumps({"facts": dict(record.facts) if record else None, "causes": causes}))
"""


def run_within(size_bytes: int, pipeline: Path) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(pipeline), str(size_bytes)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_training_that_does_not_fit_into_memory_as_a_whole_is_done_in_parts(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    """256 sequences of 64 tokens at once need more than the process may have, fewer fit."""
    pipeline["pretrain"] |= {"global_batch_tokens": 256 * 64, "tokens": 2 * 256 * 64}
    path = write_pipeline(tmp_path, pipeline)
    found = run_within(150 << 20, path)
    assert found["causes"] == []
    assert found["facts"]["optimizer_step"] == 2
    assert 1 < found["facts"]["micro_batch_size"] < 256
