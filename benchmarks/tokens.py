"""Times text to packed token ids on one core: pretune's `pack_shard`, and the usual recipe.

    python benchmarks/tokens.py --megabytes 20 --repeats 5
    python benchmarks/tokens.py --texts data/demo/tweets.jsonl --name demo

The recipe is that of `run_clm.py` in the examples of `transformers`: `Dataset.from_parquet`, `map`
that tokenises, `map` that joins the texts and cuts them into blocks; both maps with the settings
that script has. Text and tokenizer are the same. The recipe appends the end token to each text, so
that the ids are the same too; that is checked. Runs are interleaved (one of each, then again), each
in a process and a folder of its own; imports and the check are not timed. Prints the table and
writes `benchmarks/results/tokens-DATE.md`.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics

from machine import describe_machine

MB = 1_000_000
LENGTH = 512
VOCAB_SIZE = 16_384
DISTINCT_WORDS = 60_000
TEXTS_OF_A_BATCH = 1000  # what `map` takes at a time by default
SUBJECTS = {
    "pretune": "`pack_shard`, concat, one core",
    "recipe": "recipe, one core",
    "recipe-default": "recipe, threads of `tokenizers` as by default",
}
PACKAGES = ("tokenizers", "transformers", "datasets", "pyarrow", "numpy")

Runs = dict[str, list[dict]]
"""Subject -> the JSON lines of its runs, in order."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    megabytes: int
    texts: Path | None
    name: str
    repeats: int
    folder: Path
    results: Path

    def command(self) -> str:
        """The command that repeats this; without the paths, which are this machine's."""
        what = f"--texts {self.texts} --name {self.name}" if self.texts else ""
        return (
            f"python benchmarks/tokens.py {what or f'--megabytes {self.megabytes}'} "
            f"--repeats {self.repeats}"
        )


def parse_options() -> Options:
    """This process' command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=20, help="of text that is made up")
    parser.add_argument("--texts", type=Path, help="JSON lines of texts to take instead")
    parser.add_argument("--name", default="", help="of the result file, behind `tokens-`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    return Options(**vars(given))


def make_texts(size_bytes: int, mean: float = 4.0, deviation: float = 1.0) -> list[str]:
    """English-like documents of log-normal length whose words follow Zipf's law; seeded.

    Args:
        size_bytes: of all together.
        mean: of the logarithm of a document's number of words.
        deviation: of that logarithm.
    """
    generator = random.Random(0)
    counts = Counter(word for text in topics.values() for word in text.split() if word.isalpha())
    words = [word for word, _ in counts.most_common()]
    stems = [word.lower() for word in words if 3 < len(word) < 8]
    ends = ("s", "ed", "ing", "er", "ly", "ness", "able", "ment", "ion", "al")
    starts = ("", "un", "re", "over", "pre", "out")
    invented = {start + stem + end for start in starts for stem in stems for end in ends}
    rest = generator.sample(sorted(invented - set(words)), DISTINCT_WORDS - len(words))
    words += sorted(rest, key=len)  # frequent words are short ones
    weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(words))))
    texts: list[str] = []
    while size_bytes > 0:
        length = 1 + int(generator.lognormvariate(mean, deviation))
        drawn = generator.choices(words, cum_weights=weights, k=length)
        drawn[::12] = [word.capitalize() + "," for word in drawn[::12]]
        drawn[-1] += f" {generator.randrange(3000)}."
        texts.append(" ".join(drawn))
        size_bytes -= len(texts[-1])
    return texts


def read_texts(path: Path) -> list[str]:
    """The key `text` of each line."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def prepare(folder: Path, texts: list[str]) -> None:
    """A corpus shard and a tokenizer trained on a part of it."""
    import pyarrow as pa
    import pyarrow.parquet

    from trainers import tokenizer
    from trainers.config import TokenizerConfig

    pyarrow.parquet.write_table(
        pa.table({"text": texts}), folder / "train-00000.parquet", compression="zstd"
    )
    config = TokenizerConfig(train="bpe", vocab_size=VOCAB_SIZE)
    built = tokenizer.build(config, folder, texts[:10_000], LENGTH)
    built.save_pretrained(str(folder / "tokenizer"))


def run_pretune(shared: Path, folder: Path) -> dict:
    """Times `pack_shard`; leaves `train-00000.bin`."""
    from trainers.tokens import ShardWork, pack_shard

    work = ShardWork(
        shared / "train-00000.parquet", shared / "tokenizer", folder, LENGTH, "concat", 0
    )
    start = time.perf_counter(), time.process_time()
    packed = pack_shard(work)
    seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    size = (folder / packed.file).stat().st_size
    kept = packed.sequences * LENGTH
    return {
        "seconds": seconds,
        "cpu_s": cpu,
        "tokens": packed.tokens,
        "bytes": size,
        "kept": kept,
        "text_bytes": packed.text_bytes,
    }


def run_recipe(shared: Path, folder: Path) -> dict:
    """Times the recipe; leaves the ids of its blocks in `recipe.bin`, for the check."""
    import datasets
    import numpy as np
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(str(shared / "tokenizer"))
    loaded.model_max_length = int(1e30)  # else it warns

    def tokenise(examples: dict) -> dict:
        texts = [text + loaded.eos_token for text in examples["text"]]
        return loaded(texts, add_special_tokens=False)

    def group_texts(examples: dict) -> dict:
        joined = {key: list(itertools.chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"]) // LENGTH * LENGTH
        result = {
            key: [ids[start : start + LENGTH] for start in range(0, total, LENGTH)]
            for key, ids in joined.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    start = time.perf_counter(), time.process_time()
    raw = datasets.Dataset.from_parquet(
        str(shared / "train-00000.parquet"), cache_dir=str(folder / "cache")
    )
    tokenised = raw.map(tokenise, batched=True, remove_columns=["text"])
    blocks = tokenised.map(group_texts, batched=True)
    seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    ids = np.array(blocks.with_format("numpy")["input_ids"][:], dtype=np.uint16)
    ids.tofile(folder / "recipe.bin")
    return {
        "seconds": seconds,
        "cpu_s": cpu,
        "tokens": sum(len(row) for row in tokenised["input_ids"]),
        "bytes": sum(Path(file["filename"]).stat().st_size for file in blocks.cache_files),
        "kept": ids.size,
    }


def check_ids(shared: Path, ours: Path, recipe: Path) -> None:
    """The recipe's blocks are ours, less what it drops after each batch of texts.

    Raises:
        ValueError: they are not.
    """
    import numpy as np
    import pyarrow.parquet

    from trainers.tokenizer import plain

    end = plain(shared / "tokenizer")[1]
    stream = np.fromfile(ours / "train-00000.bin", np.uint16)
    theirs = np.fromfile(recipe / "recipe.bin", np.uint16)
    documents = pyarrow.parquet.read_metadata(shared / "train-00000.parquet").num_rows
    ends = np.flatnonzero(stream == end) + 1
    bounds = [0, *ends[TEXTS_OF_A_BATCH - 1 : documents - 1 : TEXTS_OF_A_BATCH], len(stream)]
    batches = [
        stream[start : start + (stop - start) // LENGTH * LENGTH]
        for start, stop in itertools.pairwise(bounds)
    ]
    found = np.concatenate(batches)
    # Of the last batch ours lacks what was left behind the last whole block of all texts.
    if len(theirs) - len(found) not in (0, LENGTH) or (found != theirs[: len(found)]).any():
        raise ValueError(f"the ids differ; see {ours} and {recipe}")


def run_child(subject: str, shared: Path, folder: Path) -> None:
    """What a run's process does; the last line it prints is the result."""
    run = run_pretune if subject == "pretune" else run_recipe
    print(json.dumps(run(shared, folder)))


def run_once(subject: str, shared: Path, folder: Path) -> dict:
    """One run in a process of its own, held to one core unless threads are the subject."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    command = [sys.executable, __file__, "--child", subject, str(shared), str(folder)]
    if subject != "recipe-default":
        environment["TOKENIZERS_PARALLELISM"] = "false"
        core = str(max(os.sched_getaffinity(0)))
        command = ["taskset", "-c", core, *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{subject} failed: {done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_all(options: Options, folder: Path) -> Runs:
    """Every subject, `repeats` times, round robin so that noise hits all alike."""
    shared = folder / "shared"
    shared.mkdir()
    texts = read_texts(options.texts) if options.texts else make_texts(options.megabytes * MB)
    prepare(shared, texts)
    runs: Runs = {subject: [] for subject in SUBJECTS}
    for repeat in range(options.repeats):
        for subject in SUBJECTS:
            (folder / subject).mkdir()
            line = run_once(subject, shared, folder / subject)
            runs[subject].append(line)
            print(
                f"{repeat + 1}/{options.repeats} {subject} {line['seconds']:.2f} s",
                file=sys.stderr,
            )
        for subject in ("recipe", "recipe-default"):
            check_ids(shared, folder / "pretune", folder / subject)
        for subject in SUBJECTS:
            shutil.rmtree(folder / subject)
    return runs


def build_table(runs: Runs) -> list[str]:
    """The medians as a Markdown table."""
    speed = {
        subject: statistics.median(line["tokens"] / line["seconds"] for line in lines)
        for subject, lines in runs.items()
    }
    bytes_per_token = {
        subject: lines[-1]["bytes"] / lines[-1]["kept"] for subject, lines in runs.items()
    }
    names = (
        "subject",
        "seconds",
        "CPU seconds",
        "tokens per second",
        "of pretune's",
        "bytes on disk per token",
        "times pretune's",
    )
    lines = [f"| {' | '.join(names)} |", "|---|---:|---:|---:|---:|---:|---:|"]
    for subject, measured in runs.items():
        seconds = statistics.median(line["seconds"] for line in measured)
        cpu = statistics.median(line["cpu_s"] for line in measured)
        lines.append(
            f"| {SUBJECTS[subject]} | {seconds:.2f} | {cpu:.2f} | {speed[subject]:,.0f} "
            f"| {speed[subject] / speed['pretune']:.2f} | {bytes_per_token[subject]:.2f} "
            f"| {bytes_per_token[subject] / bytes_per_token['pretune']:.2f} |"
        )
    return lines


def build_report(runs: Runs, options: Options, date: str) -> str:
    """The dated result file."""
    tokens, size = (runs["pretune"][-1][name] for name in ("tokens", "text_bytes"))
    versions = [f"- {name} {importlib.metadata.version(name)}" for name in PACKAGES]
    singles = [
        f"| {SUBJECTS[subject]} | {', '.join(format(line['seconds'], '.2f') for line in lines)} |"
        for subject, lines in runs.items()
    ]
    return "\n".join(
        [
            f"# Text to packed ids, {date}",
            "",
            f"`{options.command()}`",
            "",
            f"{size / MB:.1f} MB of text, {tokens:,} tokens of a BPE of {VOCAB_SIZE:,}, blocks",
            f"of {LENGTH}. Medians of {options.repeats} interleaved runs; the ids of all were",
            "compared and are equal. What each subject does is in the docstring of",
            "`benchmarks/tokens.py`.",
            "",
            *build_table(runs),
            "",
            "## Machine",
            "",
            *describe_machine(options.folder),
            "",
            "## Versions",
            "",
            *versions,
            "",
            "## All values",
            "",
            "| subject | seconds |",
            "|---|---|",
            *singles,
            "",
        ]
    )


def main() -> None:
    """Run everything, print the table, write the result file."""
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="tokens-", dir=options.folder) as folder:
        runs = run_all(options, Path(folder))
    date = datetime.now(tz=UTC).date().isoformat()
    options.results.mkdir(parents=True, exist_ok=True)
    name = f"tokens-{options.name}-{date}.md" if options.name else f"tokens-{date}.md"
    path = options.results / name
    path.write_text(build_report(runs, options, date), encoding="utf-8")
    print("\n".join(build_table(runs)))
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
