"""Times what a trial costs that does nothing: Pretune's path through Ray Tune and Tune's own forms.

    python benchmarks/scale.py --trials 2000 --peer-trials 100 --repeats 3

ASHA over trials of up to nine epochs, two at once. Subjects are in `benchmarks/scale/subject.py`.
Pretune runs with all trials, and all subjects with fewer, since the peers take long. What a subject
takes is compared with what Pretune takes for as many: the start of a search counts more in few.
Then Pretune's search is killed (SIGKILL of its driver, and its Ray with it) when nine tenths of its
results are there, and gone on with: the time to its first result, and how many epochs were trained
twice. Runs are interleaved. Prints the tables and writes `benchmarks/results/scale-DATE.md`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import describe_machine

HERE = Path(__file__).resolve().parent
SUBJECTS = {
    "pretune": "`RayCluster.run_trials`, metrics of each epoch kept",
    "class": "class trainable, `reuse_actors`, a checkpoint an epoch, loggers off",
    "bare": "class trainable, `reuse_actors`, nothing kept, loggers off",
    "function": "function trainable, Tune's defaults, nothing kept",
}
RUN_TIMEOUT_S = 3000.0
Found = Mapping[str, Any]


def start(kind: str, trials: int, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """One run."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, HERE / "scale" / "subject.py", kind, str(trials), str(folder), *more],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )


def measured(kind: str, trials: int) -> Found:
    """One run; its JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        return result_of(start(kind, trials, Path(folder)), trials)


def result_of(answer: subprocess.CompletedProcess[str], trials: int) -> Found:
    """The JSON line of a run.

    Raises:
        RuntimeError: it failed, or trials are missing.
    """
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    if answer.returncode or not lines:
        raise RuntimeError(f"{answer.args} failed: {answer.stderr[-2000:]}")
    found: Found = json.loads(lines[-1])
    if found["trials"] != trials:
        raise RuntimeError(f"{answer.args}: {found['trials']} trials of {trials}")
    return found


def gone_on_with(trials: int, whole: Found) -> dict[str, float]:
    """A search that is killed near its end, and what going on with it takes."""
    with tempfile.TemporaryDirectory() as folder:
        die_after = int(0.9 * whole["epochs"])
        killed = start("pretune", trials, Path(folder), "--die-after", str(die_after))
        if killed.returncode != -9:
            raise RuntimeError(f"the search did not die as it should: {killed.stderr[-2000:]}")
        before = trained(Path(folder))
        found = result_of(start("pretune", trials, Path(folder)), trials)
        after = trained(Path(folder))
    return {
        "first_s": found["first_s"],
        "seconds": found["seconds"],
        "epochs_before": sum(before.values()),
        "epochs_twice": sum(after.values()) - len(after),
    }


def trained(folder: Path) -> Counter[str]:
    """How often each epoch of each trial was trained."""
    files = (folder / "trained").iterdir()
    return Counter(line for file in files for line in file.read_text().splitlines())


def page(
    arguments: argparse.Namespace,
    runs: Mapping[tuple[str, int], list[Found]],
    restarts: list[dict[str, float]],
) -> str:
    """The result as Markdown."""
    today = datetime.now(UTC).date()
    command = (
        f"python benchmarks/scale.py --trials {arguments.trials} "
        f"--peer-trials {arguments.peer_trials} --repeats {arguments.repeats}"
    )
    lines = [
        f"# Trials that do nothing, {today}",
        "",
        f"`{command}`",
        "",
        "Milliseconds a trial, from the start of the search to its end, medians of interleaved",
        "runs; Ray runs already. Memory is the driver's, after the first result and at the end.",
        "`times` is against Pretune with as many trials.",
        "",
        "| subject | what | trials | ms a trial | times | memory in MB | all, in s |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    costs = {
        key: statistics.median(run["seconds"] for run in found) / key[1] * 1000
        for key, found in runs.items()
    }
    for (kind, trials), found in runs.items():
        memory = statistics.median(run["memory_mb"][0] for run in found)
        last = statistics.median(run["memory_mb"][-1] for run in found)
        each = " ".join(f"{run['seconds']:.1f}" for run in found)
        lines.append(
            f"| {kind} | {SUBJECTS[kind]} | {trials:,} | {costs[kind, trials]:.1f} "
            f"| {costs[kind, trials] / costs['pretune', trials]:.1f} "
            f"| {memory:.0f} to {last:.0f} | {each} |"
        )
    lines += [
        "",
        "## Killed near the end, and gone on with",
        "",
        "| seconds to the first result | to the end | epochs before | trained twice |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one['first_s']:.1f} | {one['seconds']:.1f} | {one['epochs_before']:,.0f} "
        f"| {one['epochs_twice']:.0f} |"
        for one in restarts
    ]
    python = ".".join(map(str, sys.version_info[:3]))
    lines += ["", "## Machine", "", *describe_machine(Path(tempfile.gettempdir()))]
    lines += ["", "## Versions", "", f"- python {python}, ray {version('ray')}", ""]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--peer-trials", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    plan = [("pretune", given.trials), *((kind, given.peer_trials) for kind in SUBJECTS)]
    runs: dict[tuple[str, int], list[Found]] = {key: [] for key in plan}
    restarts: list[dict[str, float]] = []
    path = given.results / f"scale-{datetime.now(UTC).date()}.md"
    for _ in range(given.repeats):
        for kind, trials in plan:
            runs[kind, trials].append(measured(kind, trials))
            print(kind, trials, runs[kind, trials][-1], file=sys.stderr)
        restarts.append(gone_on_with(given.trials, runs["pretune", given.trials][-1]))
        print(restarts[-1], file=sys.stderr)
        path.write_text(page(given, runs, restarts), encoding="utf-8")  # each round is a result
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
