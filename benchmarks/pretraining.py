"""Times pretraining against bare loops and Hugging Face's Trainer on this machine's CPU.

    python benchmarks/pretraining.py --repeats 5 --packages FOLDER

Parts, each also alone by `--only`:

- `zero`: two ranks, ZeRO stages 0 to 3, against a bare loop around `deepspeed.initialize`;
- `single`: one rank, against a bare loop in PyTorch and against `transformers.Trainer`;
- `short`: texts as short as tweets, packed, against the Trainer with its dynamic padding;
- `startup`: from the start of the process to the end of the first step on two ranks;
- `goodput`: what stalls and recoveries would cost on many GPUs; a formula, no measurement.

In `zero` and `single` model, first weights, batches, their order, optimizer and schedule are the
same, and it fails unless the losses of all steps are equal. Runs are interleaved and begin with
another subject each repeat; each is a process (a rank: one process) of its own with one thread,
fp32. The rate is taken from the end of the last warm-up step to the end of the last step. What each
subject does, and why, is in the docstring of its script in `benchmarks/pretraining/`.

The Trainer needs packages that are no dependencies of this project: `--packages` is where
`pip install --no-deps --target FOLDER -r benchmarks/pretraining/peers.txt` put them. Prints the
tables and writes `benchmarks/results/pretraining-DATE.md`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent / "pretraining"))

from comparison import Group, Runs, Subject, value_of
from machine import describe_machine
from peer import Request
from report import build_goodput, build_report, build_tables
from tokens import make_texts

HERE = Path(__file__).resolve().parent
SUBJECTS = HERE / "pretraining"
PARTS = ("zero", "single", "short", "startup", "goodput")
TOLERANCE = 1e-5
"""Largest relative difference between the losses of a step."""
RUN_TIMEOUT_S = 1800.0
VOCAB_SIZE = 4096
LENGTH = 128
NETWORK = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
}
BATCH = 8
SHORT_SEQUENCES, SHORT_TEXTS = 6, 16
"""Of one step: sequences of pretune, texts of the Trainer; about as many tokens."""
SHORT_WORDS = (3.03, 0.6)
"""Mean and deviation of the logarithm of a short text's words: 46 tokens in the mean."""


class RunFailedError(RuntimeError):
    """A run ended without a measurement that can be trusted."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int
    warm_up: int
    repeats: int
    only: tuple[str, ...]
    packages: Path | None
    stall_s: float
    recovery_s: float
    name: str
    folder: Path
    results: Path

    def command(self) -> str:
        """The command that repeats this; without the paths, which are this machine's."""
        only = "" if self.only == PARTS else f" --only {','.join(self.only)}"
        packages = " --packages FOLDER" if self.packages else ""
        return (
            f"python benchmarks/pretraining.py --repeats {self.repeats} --steps {self.steps} "
            f"--warm-up {self.warm_up} --stall-s {self.stall_s:g} --recovery-s {self.recovery_s:g}"
            f"{packages}{only}"
        )


def parse_options() -> Options:
    """This process' command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of a training, 100 at most")
    parser.add_argument("--warm-up", type=int, default=8, help="steps that are not timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--packages", type=Path, help="what the Trainer needs; without: no Trainer")
    parser.add_argument("--stall-s", type=float, default=0.5, help="of a checkpoint, for goodput")
    parser.add_argument("--recovery-s", type=float, default=60.0, help="for goodput")
    parser.add_argument("--name", default="", help="of the result file, behind `pretraining-`")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = vars(parser.parse_args())
    given["only"] = tuple(given["only"].split(","))
    if unknown := set(given["only"]) - set(PARTS):
        parser.error(f"--only has {sorted(unknown)}; known are {', '.join(PARTS)}")
    if not 0 < given["warm_up"] < given["steps"] <= 100:
        parser.error("pretune reports every step of 100 at most: 0 < warm-up < steps <= 100")
    return Options(**given)


def build_groups(options: Options) -> list[Group]:
    """What is measured."""
    ours, trainer = "subject_pretune.py", Subject("Trainer", "peer_trainer.py")
    trainers = (trainer,) if options.packages else ()
    bare = Subject("bare PyTorch", "peer_torch.py")
    groups = [
        Group(
            "zero",
            f"ZeRO {stage}, 2 ranks",
            "rows",
            (
                Subject("pretune", ours, 2, stage),
                Subject("bare DeepSpeed", "peer_deepspeed.py", 2, stage),
            ),
        )
        for stage in range(4)
    ]
    groups += [
        Group("single", "1 rank", "rows", (Subject("pretune", ours), bare, *trainers)),
        Group("short", "short texts", "short", (Subject("pretune", ours), *trainers)),
        Group(
            "startup",
            "start-up, 2 ranks",
            "startup",
            (
                Subject("pretune", "subject_startup.py"),
                Subject("bare DeepSpeed", "peer_deepspeed.py", 2),
            ),
        ),
    ]
    return [group for group in groups if group.part in options.only]


def prepare(folder: Path, groups: list[Group], options: Options) -> dict[str, float]:
    """The folders that groups share; facts about the short texts."""
    from work import prepare as prepare_shared

    facts: dict[str, float] = {}
    for name in {group.shared for group in groups}:
        (folder / name).mkdir()
        is_short = name == "short"
        request = Request(
            architecture="llama",
            network=NETWORK,
            packing="best_fit" if is_short else "concat",
            sequence_length=LENGTH,
            batch=SHORT_SEQUENCES if is_short else BATCH,
            texts=SHORT_TEXTS,
            steps=2 if name == "startup" else options.steps,
        )
        texts = make_texts(2_000_000, *SHORT_WORDS) if is_short else make_texts(2_000_000)
        packed = prepare_shared(folder / name, texts, VOCAB_SIZE, request)
        if is_short:
            facts = {
                "tokens of a text": packed.tokens / packed.documents,
                "padding when packed": packed.padding / (packed.tokens + packed.padding),
                "texts that were cut": packed.split_documents / packed.documents,
            }
    return facts


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_once(subject: Subject, shared: Path, folder: Path, options: Options) -> dict:
    """One run, every rank in a process of its own; rank 0's JSON line.

    Raises:
        RunFailedError: it failed or timed out.
    """
    paths = [str(SUBJECTS), os.environ.get("PYTHONPATH", "")]
    if options.packages and subject.script == "peer_trainer.py":
        paths.append(str(options.packages))
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(subject.ranks),
    }
    script, stage = str(SUBJECTS / subject.script), str(subject.stage)
    command = [sys.executable, script, str(shared), str(folder), "--stage", stage]
    logs = [(folder / f"rank{rank}.log").open("w+") for rank in range(subject.ranks)]
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(folder / f"rank{rank}.out").open("w"),
            stderr=logs[rank],
        )
        for rank in range(subject.ranks)
    ]
    try:
        codes = [process.wait(RUN_TIMEOUT_S) for process in processes]
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"{subject} took over {RUN_TIMEOUT_S} s; see {folder}") from None
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        last = (folder / "rank0.log").read_text(encoding="utf-8")[-2000:]
        raise RunFailedError(f"{subject} exited with {codes}; {last}")
    line = json.loads((folder / "rank0.out").read_text(encoding="utf-8").splitlines()[-1])
    return line | {"started": started}


def run_all(groups: list[Group], folder: Path, options: Options) -> Runs:
    """Every subject, `repeats` times, round robin so that noise hits all alike.

    Raises:
        RunFailedError: a run failed, or losses that must be equal are not.
    """
    runs: Runs = {(group.title, s.name): [] for group in groups for s in group.subjects}
    for repeat in range(options.repeats):
        for group in groups:
            turn = repeat % len(group.subjects)
            for subject in group.subjects[turn:] + group.subjects[:turn]:
                own = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
                line = run_once(subject, folder / group.shared, own, options)
                runs[group.title, subject.name].append(line)
                told = f"{repeat + 1}/{options.repeats} {group.title} {subject.name}"
                print(f"{told} {value_of(group, line, options.warm_up):.5g}", file=sys.stderr)
            if group.has_equal_losses:
                require_equal_losses(group, runs)
    return runs


def require_equal_losses(group: Group, runs: Runs) -> None:
    """Compare the last run of each subject with pretune's, step by step.

    Raises:
        RunFailedError: a step's losses differ by more than `TOLERANCE` of them.
    """
    ours = runs[group.title, "pretune"][-1]["losses"]
    for subject in group.subjects[1:]:
        theirs = runs[group.title, subject.name][-1]["losses"]
        for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if not abs(one - other) <= TOLERANCE * abs(other):  # NaN is refused, too
                raise RunFailedError(
                    f"{group.title}, step {step + 1}: pretune's loss is {one}, that of "
                    f"{subject.name} {other}"
                )


def main() -> None:
    """Run everything, print the tables, write the result file."""
    options = parse_options()
    groups = build_groups(options)
    with tempfile.TemporaryDirectory(prefix="pretraining-", dir=options.folder) as folder:
        facts = prepare(Path(folder), groups, options)
        runs = run_all(groups, Path(folder), options)
    tables = build_tables(groups, runs, facts, options.warm_up)
    if "goodput" in options.only:
        tables += build_goodput(options.stall_s, options.recovery_s)
    date = datetime.now(tz=UTC).date().isoformat()
    report = build_report(
        f"# Speed of pretraining, {date}\n\n`{options.command()}`",
        tables,
        describe_machine(options.folder),
        runs,
        options.warm_up,
    )
    options.results.mkdir(parents=True, exist_ok=True)
    name = f"pretraining-{options.name}-{date}.md" if options.name else f"pretraining-{date}.md"
    path = options.results / name
    path.write_text(report, encoding="utf-8")
    print("\n".join(tables))
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
