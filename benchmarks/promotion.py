"""What a promotion costs: a version of 1 GB into the store, and the paired bootstrap.

    python benchmarks/promotion.py --results benchmarks/results

The peer of the store copies the same folder, computes the SHA-256 of what it copied and syncs it to
the disk, once; the goal is 1.5 times as long. Runs are interleaved. The bootstrap is the gate's, of
10,000 test rows and 10,000 draws, for metrics of three kinds: a share, sums by label, and an area
that needs the order of all rows; its goal is 2 s.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine

from trainers.resampling import resampled
from trainers.task_config import TaskConfig
from trainers.task_types import type_of
from trainers.task_types.base import Prediction
from workflows.models import ModelStore
from workflows.significance import bootstrap
from workflows.storage import Storage

LABELS = ["bad", "fine", "good"]
ROWS = RESAMPLES = 10_000


def write_model(folder: Path, megabytes: int) -> Path:
    """A folder as large as a model, of bytes that compress to nothing less."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        for _ in range(megabytes):
            file.write(random.bytes(1 << 20))
    (folder / "config.json").write_text("{}")
    return folder


def copied_and_hashed(source: Path, target: Path) -> None:
    """What must be done at least."""
    shutil.copytree(source, target)
    for path in target.iterdir():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
            os.fsync(file.fileno())


def promoted(source: Path, root: Path) -> None:
    """A version, and the alias."""
    store = ModelStore(Storage.at(root))
    version = store.add("big.model", source, fingerprint="f", attempt="a", task={}, scores={})
    store.promote(version, expected=None, reason="the first", run="benchmark")


def seconds_of(action: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def store_rows(folder: Path, megabytes: int, repeats: int) -> list[str]:
    """Both, one after the other, each into a new place."""
    source = write_model(folder / "model", megabytes)
    found: dict[str, list[float]] = {"copy": [], "store": []}
    for repeat in range(repeats):
        actions = {
            "copy": lambda target: copied_and_hashed(source, target),
            "store": lambda target: promoted(source, target),
        }
        for name in sorted(actions, reverse=bool(repeat % 2)):
            target = folder / f"{name}{repeat}"
            found[name].append(seconds_of(lambda a=actions[name], t=target: a(t)))
            shutil.rmtree(target)
            os.sync()
    ratio = median(s / c for s, c in zip(found["store"], found["copy"], strict=True))
    told = {name: ", ".join(f"{one:.2f}" for one in times) for name, times in found.items()}
    return [
        f"| copied, hashed and synced once, {megabytes:,} MB | {told['copy']} s | |",
        f"| `ModelStore.add` and `promote` of the same | {told['store']} s | |",
        f"| the second over the first (median of the ratios) | {ratio:.2f} | 1.5 |",
    ]


def answers(random: np.random.Generator, truth: list[str], accuracy: float) -> list[Prediction]:
    """Of a model that is right so often."""
    found = []
    for label in truth:
        shares = random.dirichlet([1.0] * len(LABELS))
        said = label if random.random() < accuracy else LABELS[int(shares.argmax())]
        found.append(Prediction(said, float(shares.max()), shares.tolist()))
    return found


def bootstrap_rows(repeats: int) -> list[str]:
    """Metric by metric."""
    random = np.random.default_rng(0)
    truth = [str(label) for label in random.choice(LABELS, size=ROWS)]
    ours, theirs = (answers(random, truth, accuracy) for accuracy in (0.75, 0.74))
    rows = []
    for metric in ("accuracy", "macro_f1", "auroc"):
        section = {
            "type": "classification",
            "metric": metric,
            "data": {"path": "rows.csv", "split": {"test": 0.2, "validation": 0.2}},
        }
        kind = type_of(TaskConfig.model_validate(section), LABELS)

        def compare() -> None:
            bootstrap(
                resampled(kind, truth, ours),  # noqa: B023 -- called at once
                resampled(kind, truth, theirs),  # noqa: B023
                ROWS,
                differing=ROWS,
                sign=1.0,
                needed=0.0,
                confidence=0.95,
                resamples=RESAMPLES,
                seed=0,
            )

        times = [seconds_of(compare) for _ in range(repeats)]
        rows.append(f"| bootstrap of {metric}, {ROWS:,} rows | {median(times):.2f} s | 2 s |")
    return rows


def main() -> None:
    """Measure, print, write `promotion-DATE.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rows = store_rows(folder, options.megabytes, options.repeats)
        rows += bootstrap_rows(options.repeats)
        machine = describe_machine(folder)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    given = f"--megabytes {options.megabytes} --repeats {options.repeats}"
    lines = [
        f"# What a promotion costs, {date}",
        "",
        f"`python benchmarks/promotion.py {given}`; one process, threads as NumPy takes them.",
        "",
        *machine,
        "",
        "| what | found | goal |",
        "|---|---|---|",
        *rows,
        "",
    ]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"promotion-{date}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
