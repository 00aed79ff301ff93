"""The verb that writes a first pipeline for the user's own data."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trainers.errors import DataError
from workflows import proposal
from workflows.config import ConfigError, load_config
from workflows.console import err, out, usage_error
from workflows.looking import Columns, TaskLook, look_at_corpus, look_at_task
from workflows.outside import inspect

_CPU_SHARE, _GPU_SHARE = 0.3, 0.35
"""Of a device's operations that training small models gets."""
_UNKNOWN_GPU_FLOPS = 5e13
_MEASURED_S, _WIDTH = 0.3, 1024


def init(
    pipeline: Annotated[
        Path, typer.Argument(help="The file to write.", metavar="[PIPELINE.yaml]")
    ] = Path("pipeline.yaml"),
    corpus: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="What to pretrain on: files, a glob or a URL."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A Hugging Face model instead of a corpus."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Labelled rows; several times."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME.text=COLUMN", help="Of a task: text, text_pair or label; several times."
        ),
    ] = None,
    corpus_text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of the corpus, with its texts.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=1, help="That pretraining may take, on this machine.")
    ] = 30.0,
    name: Annotated[str | None, typer.Option(help="Of the pipeline; else the folder's.")] = None,
) -> None:
    """Look at your data and write a pipeline for them, with the reason beside each choice.

    Asks for what is not given, where there is somebody to ask. Columns, types, labels, metric and
    lengths are read off the first rows; the model's size follows from the corpus and --minutes.
    What is written is valid and runs; read it before it runs for long.

    Example: `pretune init --corpus "texts/*.txt" --task tone=tone.csv --minutes 20`
    """
    if pipeline.exists():
        raise usage_error(f"{pipeline} exists; remove it, or name another file")
    if corpus is None and base is None and sys.stdin.isatty():
        corpus, base = _asked_for_base()
    if not task and sys.stdin.isatty():
        task = _asked_for_tasks()
    if (corpus is None) == (base is None) or not task:
        raise usage_error("give --corpus or --base, and at least one --task; see --help")
    folder = pipeline.resolve().parent
    try:
        tasks = _looked_at(task, column or (), folder)
        text = proposal.text(
            name or _pipeline_name(folder),
            tasks,
            _machine(),
            corpus=look_at_corpus(corpus, folder, corpus_text) if corpus else None,
            base=base,
            minutes=minutes,
        )
        pipeline.write_text(text, encoding="utf-8")
        inspect(load_config(pipeline), folder)
    except (DataError, ConfigError) as error:
        pipeline.unlink(missing_ok=True)
        raise usage_error(str(error)) from None
    for task_name, look in tasks.items():
        labels = f", {len(look.labels)} labels" if look.labels else ""
        out.print(f"{task_name}: {look.type}{labels}, {proposal.metric(look).split()[0]}")
    next_ = f"wrote {pipeline}; next: pretune plan {pipeline}, then pretune run {pipeline}"
    out.print(next_, markup=False, highlight=False, soft_wrap=True)


def _asked_for_base() -> tuple[str | None, str | None]:
    err.print("Pretrain on texts of your own, or tune a model that is there?", highlight=False)
    corpus = typer.prompt("Texts (file, glob or URL; empty: none)", default="", show_default=False)
    if corpus:
        return corpus, None
    return None, typer.prompt("Folder of a Hugging Face model")


def _asked_for_tasks() -> list[str]:
    found: list[str] = []
    while True:
        question = "Labelled rows (csv, jsonl, parquet, conll; empty: no more)"
        answer = typer.prompt(question, default="", show_default=False)
        if not answer:
            return found
        found.append(answer)


def _looked_at(given: Sequence[str], columns: Sequence[str], folder: Path) -> dict[str, TaskLook]:
    """The tasks by name; each of the options names one."""
    paths: dict[str, str] = {}
    for one in given:
        name, separator, path = one.partition("=")
        name, path = (name, path) if separator else (proposal.task_name(one), one)
        if name in paths:
            raise DataError(f"--task {one}: there is a task {name} already; name it NAME=PATH")
        paths[name] = path
    named: dict[str, dict[str, str]] = {name: {} for name in paths}
    for one in columns:
        key, separator, column = one.partition("=")
        task, _, what = key.rpartition(".")
        if not separator or task not in named or what not in {"text", "text_pair", "label"}:
            known = ", ".join(f"{name}.{part}" for name in named for part in ("text", "label"))
            raise DataError(f"--column {one}: expected one of {known}, and =COLUMN")
        named[task][what] = column
    return {
        name: look_at_task(path, folder, Columns(**named[name])) for name, path in paths.items()
    }


def _pipeline_name(folder: Path) -> str:
    name = "".join(one if one.isalnum() else "-" for one in folder.name.lower()).strip("-")
    return name or "pipeline"


def _machine() -> proposal.Machine:
    """What this machine gives training, measured where it has no GPU."""
    gpus = _gpus()
    if gpus:
        from trainers.flops import peak_flops  # imports torch

        flops = sum((peak_flops(gpu, "bf16") or _UNKNOWN_GPU_FLOPS) for gpu in gpus) * _GPU_SHARE
        return proposal.Machine(flops, workers=len(gpus), gpus=len(gpus))
    return proposal.Machine(_cpu_flops() * _CPU_SHARE, workers=min(2, os.cpu_count() or 1), gpus=0)


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return told.stdout.splitlines() if told.returncode == 0 else []


def _cpu_flops() -> float:
    """Operations a second of a product of matrices with all cores."""
    import numpy as np

    matrix = np.ones((_WIDTH, _WIDTH), np.float32)
    started, products = time.perf_counter(), 0
    while time.perf_counter() - started < _MEASURED_S:
        matrix @ matrix
        products += 1
    return 2.0 * _WIDTH**3 * products / (time.perf_counter() - started)
