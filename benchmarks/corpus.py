"""A synthetic corpus of any size through corpus, tokenizer and tokens, with its memory watched.

    python benchmarks/corpus.py --gigabytes 2

Duplicates, documents that contain thirteen words of a test text, and malformed lines are planted;
the run fails unless exactly those are found. Prints the table and writes
`benchmarks/results/corpus-DATE.md`.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import yaml
from machine import describe_machine

STEPS = ("tone.data", "corpus", "tokenizer", "tokens")
VOCABULARY = 60_000
DUPLICATE_EVERY, CONTAMINATED_EVERY, MALFORMED_EVERY = 50, 1_000, 5_000
SAMPLE_EVERY_S = 0.2
MB = 1_000_000


@dataclass
class Planted:
    """What a reader of the corpus must find."""

    documents: int = 0
    duplicates: int = 0
    malformed: int = 0
    bytes: int = 0
    copied: Counter[str] = field(default_factory=Counter)
    """How many documents hold thirteen words of a task's text, by that text."""


@dataclass
class Memory:
    """Most memory of any one worker that computes shards, sampled from outside."""

    step: str

    private_bytes: int = 0
    """Pages that no other process shares."""
    resident_bytes: int = 0
    samples: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self, process: psutil.Process) -> None:
        """Look at all descendants until told to stop."""
        while not self.stopped.wait(SAMPLE_EVERY_S):
            with contextlib.suppress(psutil.Error):  # one that ended meanwhile
                for child in process.children(recursive=True):
                    self._look_at(child)

    def _look_at(self, child: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            # The step's own process waits for them, with torch and all; its name has no phase.
            if " ".join(child.cmdline()).startswith(f"ray::{self.step}."):
                found = child.memory_full_info()
                self.samples += 1
                self.private_bytes = max(self.private_bytes, found.uss)
                self.resident_bytes = max(self.resident_bytes, found.rss)


def write_task(path: Path, vocabulary: list[str], generator: np.random.Generator) -> list[str]:
    """Rows of a classification task; their texts' words in a row are what is planted."""
    texts = [" ".join(generator.choice(vocabulary, 40)) for _ in range(400)]
    lines = ["text,label", *(f"{text},{'ab'[n % 2]}" for n, text in enumerate(texts))]
    path.write_text("\n".join(lines), encoding="utf-8")
    return texts


def write_corpus(
    path: Path, size: int, vocabulary: list[str], contaminating: list[str], seed: int
) -> Planted:
    """JSON lines of log-normal lengths, words by Zipf's law, with what is planted."""
    generator, planted = np.random.default_rng(seed), Planted()
    ranks = np.arange(1, len(vocabulary) + 1)
    chances = np.cumsum(1 / ranks) / np.sum(1 / ranks)
    words = np.array(vocabulary, dtype=object)
    earlier = ""
    with path.open("w", encoding="utf-8") as file:
        while planted.bytes < size:
            lengths = np.clip(generator.lognormal(4.8, 0.8, 1000).astype(int), 5, 20_000)
            chosen = words[np.searchsorted(chances, generator.random(int(lengths.sum())))]
            for part in np.split(chosen, np.cumsum(lengths)[:-1]):
                planted.documents += 1
                text = f"document {planted.documents} " + " ".join(part)
                if planted.documents % DUPLICATE_EVERY == 0:
                    text = "  ".join(earlier.upper().split(" "))
                    planted.duplicates += 1
                elif planted.documents % CONTAMINATED_EVERY == 1:
                    copied = contaminating[planted.documents % len(contaminating)]
                    text += " " + " ".join(copied.split(" ")[10:23])
                    planted.copied[copied] += 1
                elif planted.documents % MALFORMED_EVERY == 2:
                    file.write('{"text": "cut off\n')
                    planted.malformed += 1
                else:
                    earlier = text
                planted.bytes += file.write(json.dumps({"text": text}) + "\n")
    return planted


def pipeline(folder: Path, packing: str) -> dict:
    """The pipeline file."""
    return {
        "name": "large",
        "storage": str(folder / "storage"),
        "corpus": {
            "sources": [{"path": "corpus.jsonl"}],
            "held_out": ["tone"],
            "malformed": "skip",
            "clean": {"normalize": "NFC", "min_characters": 20},
        },
        "tokenizer": {"train": "bpe", "vocab_size": 16_384, "sample_bytes": 64 * MB},
        "model": {"architecture": "llama", "config": {"hidden_size": 64}},
        "pretrain": {
            "sequence_length": 512,
            "packing": packing,
            "tokens": 1 << 20,
            "global_batch_tokens": 1 << 14,
            "learning_rate": 1e-3,
        },
        "tasks": {
            "tone": {
                "type": "classification",
                "data": {"path": "tone.csv", "split": {"test": 0.5, "validation": 0.1}},
                "metric": "accuracy",
                "search": {"trials": 1},
            }
        },
    }


@dataclass
class Measured:
    """One step."""

    step: str
    elapsed_s: float
    """With the start of Python, Ray and the plan."""
    record: dict
    memory: Memory


def run(folder: Path, step: str) -> Measured:
    """Run one step of the pipeline in a process of its own."""
    command = [str(Path(sys.executable).with_name("pretune")), "run", "pipeline.yaml"]
    started = time.monotonic()
    with (folder / f"{step}.log").open("w") as log:
        process = subprocess.Popen([*command, "--only", step], cwd=folder, stdout=log, stderr=log)
        memory = Memory(step)
        watcher = threading.Thread(target=memory.watch, args=(psutil.Process(process.pid),))
        watcher.start()
        status = process.wait()
        memory.stopped.set()
        watcher.join()
    if status:
        raise SystemExit((folder / f"{step}.log").read_text())
    return Measured(step, time.monotonic() - started, record_of(folder, step), memory)


def record_of(folder: Path, step: str) -> dict:
    """The record of a finished step."""
    kind = step.rpartition(".")[2]
    entries = [
        json.loads(path.read_text()) for path in (folder / f"storage/ledger/{kind}").glob("*.json")
    ]
    (record,) = [entry for entry in entries if "facts" in entry]
    return record


def check(folder: Path, planted: Planted) -> None:
    """Refuse figures of a run that found other than what was planted."""
    (test,) = folder.glob("storage/artifacts/data/*/*/output/test.parquet")
    held_out = set(pyarrow.parquet.read_table(test).column("text").to_pylist())
    facts = record_of(folder, "corpus")["facts"]
    expected = {
        "duplicates": planted.duplicates,
        "malformed": planted.malformed,
        "contaminated": sum(n for text, n in planted.copied.items() if text in held_out),
        "short": 0,
        "held_out": 0,
    }
    found = {name: facts[name] for name in expected}
    if found != expected:
        raise SystemExit(f"planted {expected}, found {found}")
    read = sum(facts[n] for n in ("train", "validation", "duplicates", "contaminated"))
    if read != planted.documents:
        raise SystemExit(f"{planted.documents} documents were written and {read} counted")


def table(command: str, planted: Planted, measured: list[Measured], folder: Path) -> str:
    """The result file."""
    by_step = {one.step: one for one in measured}
    facts = by_step["tokens"].record["facts"]
    tokens_s = by_step["tokens"].record["elapsed_s"]
    cores = psutil.cpu_count()
    contaminated = by_step["corpus"].record["facts"]["contaminated"]
    found = (
        f"Planted and found: {planted.duplicates:,} duplicates, {contaminated:,} documents with "
        f"thirteen words of a test text, {planted.malformed:,} malformed lines."
    )
    rate = facts["tokens"] / tokens_s / cores
    lines = [
        "# A synthetic corpus through corpus, tokenizer and tokens",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}",
        "",
        *describe_machine(folder),
        "",
        f"{planted.bytes / 1e9:.2f} GB of JSON lines, {planted.documents:,} documents.",
        found,
        "",
        "| step | seconds | most private memory of a shard's worker | most resident memory |",
        "|---|---|---|---|",
        *(row_of(one) for one in measured),
        "",
        f"{facts['tokens']:,} tokens, {rate:,.0f} a second and core ({cores} cores)",
        "",
        "| fact | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for one in measured for name, value in facts_of(one).items()),
    ]
    return "\n".join(lines) + "\n"


def row_of(one: Measured) -> str:
    """A step's time and memory."""
    sizes = (one.memory.private_bytes, one.memory.resident_bytes)
    memory = " | ".join(f"{size / MB:.0f} MB" if size else "no shards" for size in sizes)
    return f"| {one.step} | {one.record['elapsed_s']:.0f} | {memory} |"


def facts_of(one: Measured) -> dict:
    """A step's numbers."""
    facts = one.record["facts"].items()
    return {f"{one.step}: {name}": v for name, v in facts if isinstance(v, int | float)}


def main() -> None:
    """Write the corpus, run the steps, check the counts, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--packing", default="best_fit", choices=["concat", "best_fit"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="pretune-corpus-") as name:
        folder, generator = Path(name), np.random.default_rng(0)
        letters = generator.integers(97, 123, (VOCABULARY, 12))
        sizes = generator.integers(2, 12, VOCABULARY)
        vocabulary = sorted(
            {"".join(map(chr, row[:size])) for row, size in zip(letters, sizes, strict=True)}
        )
        generator.shuffle(vocabulary)
        texts = write_task(folder / "tone.csv", vocabulary, generator)
        planted = write_corpus(
            folder / "corpus.jsonl", int(given.gigabytes * 1e9), vocabulary, texts, seed=1
        )
        print(f"wrote {planted.documents:,} documents, {planted.bytes:,} bytes", flush=True)
        data = yaml.safe_dump(pipeline(folder, given.packing))
        (folder / "pipeline.yaml").write_text(data, encoding="utf-8")
        measured = []
        for step in STEPS:
            measured.append(run(folder, step))
            print(f"{step}: {measured[-1].elapsed_s:.0f} s, {facts_of(measured[-1])}", flush=True)
        check(folder, planted)
        command = (
            f"python benchmarks/corpus.py --gigabytes {given.gigabytes:g} --packing {given.packing}"
        )
        result = table(command, planted, measured, folder)
    print(result)
    target = given.results / f"corpus-{datetime.now(UTC):%Y-%m-%d}.md"
    target.write_text(result, encoding="utf-8")


if __name__ == "__main__":
    main()
