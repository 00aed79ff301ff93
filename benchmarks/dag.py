"""Times 1,000 no-op steps, wide and as a chain, in pretune and its peers on this machine.

    python benchmarks/dag.py --steps 1000 --repeats 3

Ray and pretune run in the environment of this process, each other peer in a virtual environment of
its own with the versions in `peers.txt`. Runs are interleaved (one of each, then again), each in a
process and a folder of its own. Prints the table and writes `benchmarks/results/dag-DATE.md`.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from machine import describe_machine

HERE = Path(__file__).resolve().parent / "dag"
SCRIPTS = {
    "ray": "peer_ray.py",
    "pretune": "subject_pretune.py",
    "prefect": "peer_prefect.py",
    "dagster": "peer_dagster.py",
}
SHAPES = ("wide", "chain")
RUN_TIMEOUT_S = 3600.0

Runs = dict[tuple[str, str], list[dict]]
"""(shape, peer) -> the JSON lines of its runs, in order."""


class RunFailedError(RuntimeError):
    """A peer's run ended without a measurement that can be trusted."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int
    repeats: int
    only: tuple[str, ...]
    venvs: Path
    folder: Path
    results: Path

    def command(self) -> str:
        """The command that repeats this; without the paths, which are this machine's."""
        only = "" if self.only == tuple(SCRIPTS) else f" --only {','.join(self.only)}"
        return f"python benchmarks/dag.py --steps {self.steps} --repeats {self.repeats}{only}"


def parse_options() -> Options:
    """This process' command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    temporary = Path(tempfile.gettempdir())
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(SCRIPTS), help="peers, with commas between")
    parser.add_argument("--venvs", type=Path, default=temporary / "pretune-benchmark-venvs")
    parser.add_argument("--folder", type=Path, default=temporary, help="on the disk to test")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    given = parser.parse_args()
    only = tuple(given.only.split(","))
    if unknown := set(only) - set(SCRIPTS):
        parser.error(f"--only has {sorted(unknown)}; known are {', '.join(SCRIPTS)}")
    return Options(given.steps, given.repeats, only, given.venvs, given.folder, given.results)


def read_requirements(path: Path) -> dict[str, list[str]]:
    """The sections of `peers.txt`: peer -> its pinned requirements."""
    requirements: dict[str, list[str]] = {}
    peer = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("["):
            peer = text.strip("[]")
            requirements[peer] = []
        elif text:
            requirements[peer].append(text)
    return requirements


def prepare_python(peer: str, requirements: dict[str, list[str]], venvs: Path) -> Path:
    """The interpreter that runs `peer`; makes its virtual environment when it is not there.

    Raises:
        RunFailedError: pip could not install what `peers.txt` names.
    """
    if peer not in requirements:
        return Path(sys.executable)
    wanted = "\n".join(requirements[peer])
    folder, marker = venvs / peer, venvs / peer / "installed"
    python = folder / "bin" / "python"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {', '.join(requirements[peer])}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    log = folder / "pip.log"
    with log.open("w", encoding="utf-8") as output:
        command = [python, "-m", "pip", "install", "--quiet", *requirements[peer]]
        if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
            raise RunFailedError(f"pip could not install {requirements[peer]}; see {log}")
    marker.write_text(wanted, encoding="utf-8")
    return python


def run_once(python: Path, peer: str, shape: str, options: Options) -> dict:
    """One run in a process and a folder of its own; its JSON line.

    Raises:
        RunFailedError: it failed, timed out, or kept other than one result for each step.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"dag-{peer}-", dir=options.folder))
    log = folder.with_suffix(".log")
    command = [python, HERE / SCRIPTS[peer], shape, str(options.steps), folder]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"{peer} {shape} took over {RUN_TIMEOUT_S} s; {log}") from None
        finally:
            if process.poll() is None:  # the group: Prefect's server is its child
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        raise RunFailedError(f"{peer} {shape} exited with {process.returncode}; see {log}")
    line = json.loads(output.strip().splitlines()[-1])
    if peer != "ray" and line["persisted"] != options.steps:
        raise RunFailedError(f"{peer} {shape}: {line['persisted']} results; see {folder}")
    shutil.rmtree(folder)
    log.unlink()
    return line


def run_all(options: Options) -> Runs:
    """Every peer and shape, `repeats` times, round robin so that noise hits all alike."""
    requirements = read_requirements(HERE / "peers.txt")
    pythons = {peer: prepare_python(peer, requirements, options.venvs) for peer in options.only}
    runs: Runs = {(shape, peer): [] for shape in SHAPES for peer in options.only}
    for repeat in range(options.repeats):
        for shape, peer in runs:
            line = run_once(pythons[peer], peer, shape, options)
            runs[shape, peer].append(line)
            seconds = line["seconds"]
            print(f"{repeat + 1}/{options.repeats} {shape} {peer} {seconds:.3f} s", file=sys.stderr)
    return runs


def median_of(runs: Runs, shape: str, peer: str, key: str = "seconds") -> float | None:
    """The median of one value over the repeats; None when the peer does not have it."""
    values = [line.get(key) for line in runs.get((shape, peer), [])]
    return None if not values or None in values else statistics.median(values)


def format_number(value: float | None, digits: int) -> str:
    """A table cell."""
    return "-" if value is None else f"{value:.{digits}f}"


def build_table(runs: Runs, steps: int) -> list[str]:
    """The medians as a Markdown table."""
    names = (
        "shape",
        "peer",
        "seconds",
        "ms per step",
        "above bare Ray, ms per step",
        "times pretune",
        "until recorded, s",
        "results on disk",
    )
    lines = [f"| {' | '.join(names)} |", "|---|---|---:|---:|---:|---:|---:|---:|"]
    for (shape, peer), measured in runs.items():
        seconds = median_of(runs, shape, peer) or 0.0
        floor, pretune = median_of(runs, shape, "ray"), median_of(runs, shape, "pretune")
        above = None if floor is None or peer == "ray" else (seconds - floor) / steps * 1000
        cells = [
            shape,
            peer,
            format_number(seconds, 3),
            format_number(seconds / steps * 1000, 2),
            format_number(above, 2),
            format_number(seconds / pretune if pretune else None, 2),
            format_number(median_of(runs, shape, peer, "recorded_s"), 3),
            str(measured[-1]["persisted"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def describe_versions(runs: Runs) -> list[str]:
    """Each peer's versions, as Markdown."""
    versions = {peer: lines[-1]["versions"] for (_, peer), lines in runs.items()}
    return [
        f"- {peer}: {', '.join(f'{name} {number}' for name, number in found.items())}"
        for peer, found in versions.items()
    ]


def build_report(runs: Runs, options: Options, machine: list[str], date: str) -> str:
    """The dated result file."""
    singles = [
        f"| {shape} | {peer} | {', '.join(format_number(line['seconds'], 3) for line in lines)} "
        f"| {', '.join(format_number(line.get('recorded_s'), 3) for line in lines)} |"
        for (shape, peer), lines in runs.items()
    ]
    return "\n".join(
        [
            f"# {options.steps} no-op steps, {date}",
            "",
            f"`{options.command()}`",
            "",
            f"Medians of {options.repeats} interleaved runs. What each peer was asked to do, and",
            "why, is in the docstring of its script in `benchmarks/dag/`. Times pretune: the",
            "peer's seconds over pretune's. Until recorded: from the same start until the records",
            "of all steps were in the peer's files too; the docstring of `peer_prefect.py` has a",
            "setting that shortens Prefect's and lengthens its seconds. Bare Ray keeps nothing.",
            "",
            *build_table(runs, options.steps),
            "",
            "## Machine",
            "",
            *machine,
            "",
            "## Versions",
            "",
            *describe_versions(runs),
            "",
            "## All values",
            "",
            "| shape | peer | seconds | until recorded, s |",
            "|---|---|---|---|",
            *singles,
            "",
        ]
    )


def main() -> None:
    """Run everything, print the table, write the result file."""
    options = parse_options()
    machine = describe_machine(options.folder)
    runs = run_all(options)
    date = datetime.now(tz=UTC).date().isoformat()
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"dag-{date}.md"
    path.write_text(build_report(runs, options, machine, date), encoding="utf-8")
    print("\n".join(build_table(runs, options.steps)))
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
