"""Times how long a gang is away when one of its two ranks is killed, in pretune and Ray Train.

    python benchmarks/recovery.py --repeats 3

Runs are interleaved (one of each variant, then again), each in a process, a Ray and a folder of
its own; what they do is in `benchmarks/recovery/subject.py`. Prints the table and writes
`benchmarks/results/recovery-DATE.md`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from machine import describe_machine

HERE = Path(__file__).resolve().parent
VARIANTS = {
    "pretune": "`RayCluster.run_gang`",
    "ray": "Ray Train, `FailureConfig(max_failures=-1)`",
    "new-fit": "Ray Train without retries, `fit` called again",
}
RUN_TIMEOUT_S = 300.0


def run_once(variant: str) -> dict[str, float]:
    """One run; its JSON line.

    Raises:
        RuntimeError: it failed.
    """
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run(
            [sys.executable, HERE / "recovery" / "subject.py", variant, folder],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    if answer.returncode or not lines:
        raise RuntimeError(f"{variant} failed: {answer.stderr[-2000:]}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def page(runs: dict[str, list[dict[str, float]]], repeats: int) -> str:
    """The result as Markdown."""
    today = datetime.now(UTC).date()
    lines = [
        f"# A gang that loses one of two ranks, {today}",
        "",
        f"`python benchmarks/recovery.py --repeats {repeats}`",
        "",
        "Seconds from the SIGKILL of rank 1 to the end of the next step, which both ranks make;",
        f"medians of {repeats} interleaved runs. The ranks import torch, deepspeed and",
        "transformers, and begin again at the last step: what a checkpoint costs is not in it.",
        "Of the variants only pretune's does not try again what the code raised.",
        "",
        "| variant | what | seconds | least | most | all |",
        "|---|---|---:|---:|---:|---|",
    ]
    for variant, what in VARIANTS.items():
        seconds = [run["seconds"] for run in runs[variant]]
        each = " ".join(f"{value:.1f}" for value in seconds)
        lines.append(
            f"| {variant} | {what} | {statistics.median(seconds):.1f} | {min(seconds):.1f} "
            f"| {max(seconds):.1f} | {each} |"
        )
    packages = ("ray", "torch", "deepspeed", "transformers")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    python = ".".join(map(str, sys.version_info[:3]))
    lines += ["", "## Machine", "", *describe_machine(Path(tempfile.gettempdir()))]
    lines += ["", "## Versions", "", f"- python {python}, {versions}", ""]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    path = given.results / f"recovery-{datetime.now(UTC).date()}.md"
    for repeat in range(given.repeats):
        for variant, found in runs.items():
            found.append(run_once(variant))
            load = os.getloadavg()[0]
            print(f"{variant}: {found[-1]['seconds']:.1f} s, load {load:.1f}", file=sys.stderr)
        path.write_text(page(runs, repeat + 1), encoding="utf-8")  # each round is a result
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
