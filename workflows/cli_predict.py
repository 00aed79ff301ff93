"""The command `pretune predict`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cluster.capacity import CapacityError
from cluster.config import ClusterConfig, WorkerConfig
from cluster.interface import TaskFailedError, UnreachableError, WorkerLostError
from trainers import files
from trainers.config import format_of
from trainers.errors import DataError
from workflows.console import (
    FAILED,
    STORAGE,
    AsJson,
    StorageOption,
    err,
    out,
    print_json,
    usage_error,
)
from workflows.models import ModelStore
from workflows.storage import Storage


def predict(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="A .jsonl, .csv, .parquet or .txt file, a glob or URL of such; - is JSON lines.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text itself; give pairs of them where the model takes two."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="A .jsonl or .parquet file; or a folder or URL, for parts labelled on Ray. "
            "Absent, JSON lines are printed.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="The Ray cluster that labels parts; absent, a local one."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Of each process on Ray; 1 if absent.")
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Label on a GPU; on Ray, one for each process.")
    ] = False,
    storage: StorageOption = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Label texts with a model of the store: some, a file's rows, or many files on a cluster.

    Rows keep their columns and get `prediction` and `score`; of an empty text they are null. A file
    appears when it is whole. A folder gets a file for each part of the input: started again, the
    same command goes on with the parts that are missing.

    Example: `pretune predict tweets.sentiment@champion tweets.jsonl --output labelled.parquet`
    """
    from workflows import inference  # loads torch

    if (source is None) == (text is None):
        raise usage_error("give one INPUT, or texts with --text")
    is_on_ray = output is not None and (
        files.scheme_of(output) is not None or not Path(output).suffix
    )
    if text is not None and output is not None:
        raise usage_error("--text prints; leave --output out, or give the texts in a file")
    if not is_on_ray and (address is not None or cpus is not None):
        raise usage_error("--address and --cpus are for Ray, which needs --output FOLDER")
    if output is not None and files.scheme_of(output) is not None and format_of(output):
        raise usage_error(f"{output}: a URL is a folder of parts; give its name without a suffix")
    store = ModelStore(Storage.at(storage))
    model = inference.Model(Storage.at(storage), store.resolve(reference))
    try:
        if text is not None:
            folder = store.verified(model.version)
            _show(inference.label_texts(folder, model.task, text, use_gpu=gpu), as_json=as_json)
            return
        assert source is not None
        if output is None:
            inference.label_file(model, source, sys.stdout.buffer, use_gpu=gpu)
            return
        if is_on_ray:
            worker = WorkerConfig(cpus=cpus or 1, gpus=float(gpu))
            done = _on_ray(model, source, Storage.at(output), address, worker)
        else:
            done = inference.label_file(model, source, Path(output), use_gpu=gpu)
    except DataError as error:
        raise usage_error(str(error)) from None
    if as_json:
        print_json(vars(done))
        return
    reused = f", {done.reused} of {done.parts} parts were there" if done.reused else ""
    out.print(f"{output}: {done.rows:,} rows labelled{reused}", highlight=False, soft_wrap=True)


def _on_ray(
    model: Any, source: str, output: Storage, address: str | None, worker: WorkerConfig
) -> Any:
    from cluster.ray_cluster import connect  # loads Ray
    from workflows import inference

    try:
        config = ClusterConfig(address=address)
    except ValidationError as error:
        raise usage_error(f"--address {address}: {error.errors()[0]['msg']}") from None
    shards = inference.parts_of(source, model.task)
    try:
        with connect(config) as cluster:
            return inference.label_on_cluster(model, shards, output, cluster, worker)
    except (CapacityError, UnreachableError) as error:
        raise usage_error(str(error)) from None
    except (TaskFailedError, WorkerLostError) as error:
        if isinstance(error, TaskFailedError) and error.error_type == DataError.__name__:
            raise usage_error(error.cause) from None
        err.print(f"not all was labelled: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(_told(row), markup=False, highlight=False, soft_wrap=True)


def _told(row: dict[str, Any]) -> str:
    text = " | ".join(filter(None, [str(row["text"]), row.get("text_pair")]))
    found, score = row["prediction"], row["score"]
    if score is None:  # a number, or an answer
        return f"{found:.4f}  {text}" if isinstance(found, float) else f"{found}  <- {text}"
    if isinstance(row["text"], list):
        pairs = zip(row["text"], found, strict=True)
        return " ".join(word if label == "O" else f"{word}/{label}" for word, label in pairs)
    if isinstance(found, list):
        scored = zip(found, score, strict=True)
        return f"{', '.join(f'{name} {share:.3f}' for name, share in scored) or '-'}  {text}"
    return f"{found} {score:.3f}  {text}"
