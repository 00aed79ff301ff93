"""Times hyperparameter searches against Hugging Face's Trainer on Ray Tune and an expert's own.

    python benchmarks/search.py --repeats 3 --packages FOLDER

The points are fixed and none is stopped early, so all subjects do the same trials: ten for each of
two tasks, two at once, one thread each, on MiniLM-L6 (`make encoder` gets it and the rows).
Regimes, each also alone by `--only`:

- `head`: the head alone is trained, five epochs;
- `lora`: adapters beside all matrices, two epochs;
- `full`: all weights, one epoch;
- `prefixes`: all weights, `schedule: constant`, two learning rates for one to five epochs each.

It fails unless every trial of the expert has Pretune's score and loss, and the Trainer's best and
mean scores are Pretune's within 0.05 and its mean training loss within a tenth. Runs are
interleaved and begin with another subject each repeat. What each subject does, and why, is in the
docstring of its script in `benchmarks/search/`; what is searched is in `regimes.py` there.

`--packages` is where `pip install --no-deps --target FOLDER -r benchmarks/search/peers.txt` put
what the Trainer needs; without it the environment must have it. `--quick` is a smoke test and
measures nothing. Prints the tables and writes `benchmarks/results/search-DATE.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent / "search"))

from agreement import EXPERT, OURS, TRAINER, Run, Runs, require_agreement
from machine import describe_machine
from regimes import NAMES, Regime, regime_of
from tables import build_report, build_tables

HERE = Path(__file__).resolve().parent
SUBJECTS = HERE / "search"
SCRIPTS = {OURS: "ours.py", EXPERT: "expert.py", TRAINER: "trainer.py"}
RUN_TIMEOUT_S = 3600.0


class RunFailedError(RuntimeError):
    """A run ended without a measurement."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    repeats: int
    only: tuple[str, ...]
    packages: Path | None
    quick: bool
    name: str
    folder: Path
    results: Path

    def command(self) -> str:
        """The command that repeats this; without the paths, which are this machine's."""
        only = "" if self.only == NAMES else f" --only {','.join(self.only)}"
        packages = " --packages FOLDER" if self.packages else ""
        quick = " --quick" if self.quick else ""
        return f"python benchmarks/search.py --repeats {self.repeats}{packages}{only}{quick}"

    def regimes(self) -> list[Regime]:
        """What is measured."""
        return [regime_of(name, is_quick=self.quick) for name in self.only]


def parse_options() -> Options:
    """This process' command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(NAMES), help="regimes, with commas between")
    parser.add_argument("--packages", type=Path, help="what the Trainer needs")
    parser.add_argument("--quick", action="store_true", help="few trials and rows: a smoke test")
    parser.add_argument("--name", default="", help="of the result file, behind `search-`")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = vars(parser.parse_args())
    given["only"] = tuple(given["only"].split(","))
    if unknown := set(given["only"]) - set(NAMES):
        parser.error(f"--only has {sorted(unknown)}; known are {', '.join(NAMES)}")
    return Options(**given)


def environment_of(subject: str, packages: Path | None) -> dict[str, str]:
    """The environment of a subject: one thread a process, this repository, its packages."""
    paths = [str(SUBJECTS), os.environ.get("PYTHONPATH", "")]
    if packages and subject == TRAINER:
        paths.append(str(packages.resolve()))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_once(subject: str, regime: Regime, shared: Path, folder: Path, options: Options) -> Run:
    """One search; its JSON line.

    Raises:
        RunFailedError: it failed or timed out.
    """
    command = [sys.executable, str(SUBJECTS / SCRIPTS[subject]), str(shared), str(folder)]
    command += [regime.name, *(["--quick"] if options.quick else [])]
    try:
        done = subprocess.run(
            command,
            env=environment_of(subject, options.packages),
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"{regime.name}, {subject}: over {RUN_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise RunFailedError(f"{regime.name}, {subject}: {done.returncode}; {done.stderr[-3000:]}")
    line: Run = json.loads(done.stdout.splitlines()[-1])
    return line


def run_all(regimes: list[Regime], shared: Path, options: Options) -> Runs:
    """Every subject, `repeats` times, round robin so that noise hits all alike.

    Raises:
        RunFailedError: a run failed.
        DisagreementError: scores that must be alike are not.
    """
    subjects = list(SCRIPTS)
    runs: Runs = {(regime.name, subject): [] for regime in regimes for subject in subjects}
    for repeat in range(options.repeats):
        turn = repeat % len(subjects)
        for regime in regimes:
            for subject in subjects[turn:] + subjects[:turn]:
                with tempfile.TemporaryDirectory(prefix="run-", dir=shared) as folder:
                    line = run_once(subject, regime, shared, Path(folder), options)
                runs[regime.name, subject].append(line)
                told = f"{repeat + 1}/{options.repeats} {regime.name} {subject}"
                print(f"{told} {line['seconds']:.1f} s", file=sys.stderr)
            require_agreement(regime.name, runs, is_quick=options.quick)
    return runs


def main() -> None:
    """Run everything, print the tables, write the result file."""
    options = parse_options()
    regimes = options.regimes()
    from work import prepare_base, prepare_rows  # imports torch

    with tempfile.TemporaryDirectory(prefix="search-", dir=options.folder) as folder:
        shared = Path(folder)
        parameters = prepare_base(shared)
        rows = {regime.name: prepare_rows(shared, regime) for regime in regimes}
        runs = run_all(regimes, shared, options)
    tables = build_tables(regimes, runs, rows)
    date = datetime.now(tz=UTC).date().isoformat()
    title = f"# Speed of a search, {date}\n\n`{options.command()}`"
    report = build_report(title, tables, describe_machine(options.folder), runs, parameters)
    options.results.mkdir(parents=True, exist_ok=True)
    name = f"search-{options.name}-{date}.md" if options.name else f"search-{date}.md"
    path = options.results / name
    path.write_text(report, encoding="utf-8")
    print("\n".join(tables))
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
