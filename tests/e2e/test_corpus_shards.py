"""Shards of a corpus on a real Ray: what a dead worker or driver costs."""

import contextlib
import gzip
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import WORDS, tiny_pipeline, write_pipeline
from processes import PRETUNE, pretune, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = ("--only", "tone.data", "--only", "corpus")
SMALL_SHARDS = 12
SHARDS = SMALL_SHARDS + 1
SMALL_DOCUMENTS, LARGE_DOCUMENTS = 3_000, 20_000


def document(number: int, words: int) -> str:
    start = number * 7 % (len(WORDS) - words)
    text = f"{number} {' '.join(WORDS[start : start + words])}"
    return json.dumps({"text": text}) + "\n"


@pytest.fixture
def pipeline(tmp_path: Path) -> dict[str, Any]:
    """A shard that takes seconds, and twelve small ones that another worker does meanwhile."""
    data = tiny_pipeline(tmp_path)
    with gzip.open(tmp_path / "large.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
        file.writelines(document(number, 800) for number in range(LARGE_DOCUMENTS))
    small = "".join(document(-number, 100) for number in range(1, SMALL_DOCUMENTS + 1))
    (tmp_path / "small.jsonl").write_text(small, encoding="utf-8")
    data["corpus"] |= {
        "sources": [{"path": "large.jsonl.gz"}, {"path": "small.jsonl"}],
        "shard_bytes": len(small) // SMALL_SHARDS,
    }
    return data


def run_corpus(folder: Path) -> dict[str, Any]:
    """Compute the corpus and return the step's status."""
    answer = pretune("run", "pipeline.yaml", *STEPS, "--json", folder=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return status(folder)


def caught_at_work(folder: Path, pipeline: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A run whose large shard is under way, and some of its small ones done."""
    write_pipeline(folder, pipeline)
    command = [PRETUNE, "run", "pipeline.yaml", *STEPS]
    run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    wait_for(lambda: told(folder, "clean", "is done").total() >= 4)
    return run


def status(folder: Path) -> dict[str, Any]:
    told = pretune("status", "--storage", "storage", "--json", folder=folder)
    found: dict[str, Any] = json.loads(told.stdout)["steps"]["corpus"]
    return found


def workers(phase: str) -> list[psutil.Process]:
    """Processes at work on a shard."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] == [f"ray::corpus.{phase}"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def told(folder: Path, phase: str, word: str) -> Counter[int]:
    """How often each shard of a phase has logged something, over all runs."""
    pattern = re.compile(rf"shard (\d+) {word}")
    return Counter(
        int(number)
        for log in folder.glob(f"storage/runs/*/logs/corpus.{phase}.*.log")
        for number in pattern.findall(log.read_text())
    )


def digests(folder: Path) -> dict[str, Any]:
    (record,) = [
        entry
        for path in folder.glob("storage/ledger/corpus/*.json")
        if "files" in (entry := json.loads(path.read_text()))
    ]
    return dict(record["files"])


def test_worker_that_is_killed_costs_its_shard_alone(
    pipeline: dict[str, Any], tmp_path: Path
) -> None:
    run = caught_at_work(tmp_path, pipeline)
    killed = workers("clean")
    for worker in killed:
        worker.kill()
    assert run.wait(timeout=240) == 0
    begun, done = (told(tmp_path, "clean", word) for word in ("begins", "is done"))
    assert done == Counter(range(SHARDS))
    assert begun[0] == 2  # the large one, which was under way
    assert SHARDS + 1 <= begun.total() <= SHARDS + len(killed)
    found = status(tmp_path)
    assert found["train"] + found["validation"] == SMALL_DOCUMENTS + LARGE_DOCUMENTS


def test_shards_that_a_killed_run_has_done_are_not_done_again(
    pipeline: dict[str, Any], tmp_path: Path
) -> None:
    run = caught_at_work(tmp_path, pipeline)
    # As when the machine goes down: the driver, its Ray and all workers at once.
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.wait()
    before = told(tmp_path, "clean", "is done")
    assert 4 <= before.total() <= SMALL_SHARDS
    assert before[0] == 0
    run_corpus(tmp_path)
    done = told(tmp_path, "clean", "is done")
    assert done == Counter(range(SHARDS))

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    for name in ("large.jsonl.gz", "small.jsonl", "tone.csv", "places.txt"):
        (undisturbed / name).hardlink_to(tmp_path / name)
    write_pipeline(undisturbed, pipeline | {"storage": str(undisturbed / "storage")})
    run_corpus(undisturbed)
    assert digests(undisturbed) == digests(tmp_path)
