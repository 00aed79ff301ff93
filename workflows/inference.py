"""Label texts with a version of the model store: a few, a file, or many files on a cluster."""

import contextlib
import glob
import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec

from cluster import capacity
from cluster.cache import cache_folder
from cluster.capacity import CapacityError
from cluster.config import WorkerConfig
from cluster.interface import Cluster
from trainers import documents, files, inference, pieces
from trainers.config import SourceConfig, format_of
from trainers.errors import DataError
from trainers.pieces import END, Shard, Span
from trainers.predict import Predictor
from trainers.task_config import TaskConfig
from workflows import outside, storage, visibility
from workflows.execution import without_secrets
from workflows.models import ModelStore, ModelStoreError, Version
from workflows.storage import AlreadyExistsError, Storage, StorageError, is_partial

STDIN = "-"

_FORMATS = ("jsonl", "csv", "parquet", "lines")
_SUFFIXES = {"jsonl": ".jsonl", "parquet": ".parquet"}
_PART_BYTES = 4 << 20
_PLAN, _SUCCESS = "_plan.json", "_SUCCESS"
"""What a folder of predictions is of, written first; and that it is whole, written last. Readers of
such folders, as of Hadoop and Arrow, skip names that begin with an underscore."""


@dataclass(frozen=True)
class Model:
    """A version of a store, wherever it is to be loaded. Picklable."""

    storage: Storage
    version: Version

    def load(self, *, use_gpu: bool, threads: int | None = None) -> Predictor:
        """The model, after every byte was compared with the manifest.

        Raises:
            ModelStoreError: it is damaged, or no task's model.
            DataError: there is no GPU.
        """
        task = self.task
        folder = ModelStore(self.storage).verified(self.version)
        return Predictor(folder, task, use_gpu=use_gpu, threads=threads)

    @property
    def task(self) -> TaskConfig:
        """That it was trained for.

        Raises:
            ModelStoreError: it is a pretrained model, or a step of the user's own made it.
        """
        facts = ModelStore(self.storage).facts(self.version)
        task = facts["task"]
        if "objective" in facts:
            raise ModelStoreError(
                f"{self.version} is a pretrained model, which labels nothing; fine-tune it with "
                f"base: {{store: {self.version}}}, and ask a task's model"
            )
        if not task:
            raise ModelStoreError(
                f"{self.version} was made by a step of your own, and only that knows how to ask it"
            )
        return TaskConfig.model_validate(task)


@dataclass(frozen=True)
class Part:
    """Rows that one process labels, in a form that travels there."""

    model: Model
    shard: Shard
    output: Storage
    name: str
    worker: WorkerConfig


@dataclass(frozen=True)
class Labelled:
    """What was done."""

    rows: int
    parts: int
    reused: int = 0
    """Parts that were there already."""


def label_texts(
    folder: Path, task: TaskConfig, texts: Sequence[str], *, use_gpu: bool
) -> list[dict[str, Any]]:
    """Label texts; for token classification their words are what white space separates.

    Raises:
        DataError: the model takes two texts a row, and their number is odd.
    """
    rows: list[Any] = list(texts)
    pairs: list[str] | None = None
    if task.type == "token_classification":
        rows = [text.split() for text in texts]
    elif task.data.text_pair is not None:
        if len(rows) % 2:
            is_asked = task.type == "question_answering"
            told = "answers from a text: give text, question" if is_asked else "compares two texts"
            raise DataError(f"the model {told}: give pairs, an even number, not {len(rows)}")
        rows, pairs = rows[::2], rows[1::2]
    predictions = Predictor(folder, task, use_gpu=use_gpu).predict(rows, pairs)
    others: Sequence[str | None] = pairs or [None] * len(rows)
    return [
        {
            "text": row,
            **({} if pair is None else {"text_pair": pair}),
            "prediction": prediction.label,
            "score": prediction.score,
        }
        for row, pair, prediction in zip(rows, others, predictions, strict=True)
    ]


def label_file(model: Model, source: str, output: Path | IO[bytes], *, use_gpu: bool) -> Labelled:
    """Label the rows of one input in this process.

    Args:
        model: of the store.
        source: a file, a glob, a URL, or `-`: JSON lines from standard input.
        output: a file, `.jsonl` or `.parquet`, which is there when it is whole; or a stream, which
            gets JSON lines.
        use_gpu: whether the model runs on one.

    Raises:
        DataError: the input or the output is none.
    """
    shard = _whole(source, model.task)
    with contextlib.ExitStack() as stack:
        output_format = "jsonl"
        if isinstance(output, Path):
            output_format = _output_format(output)
            output = stack.enter_context(_appearing(output))
        predictor = model.load(use_gpu=use_gpu)
        return Labelled(inference.label(predictor, shard, output, output_format), 1)


def parts_of(source: str, task: TaskConfig) -> list[Shard]:
    """An input in parts that are labelled on their own, in its order.

    Raises:
        DataError: there is no such input.
    """
    if source == STDIN:
        raise DataError("standard input cannot be cut into parts; give a file")
    config, places = _source(source, task)
    return pieces.cut(config, 0, places, _PART_BYTES)


def label_on_cluster(
    model: Model, shards: Sequence[Shard], output: Storage, cluster: Cluster, worker: WorkerConfig
) -> Labelled:
    """Label the rows of files part by part, each in a task of the cluster.

    The output gets a file for each part, in the order of the input: `.parquet` where the input is,
    else `.jsonl`. Parts that are there already are not labelled again.

    Args:
        model: of the store.
        shards: of files that every node sees.
        output: a folder or URL that every node sees.
        cluster: that does it.
        worker: what one process is given.

    Raises:
        DataError: the folder is of another model or input.
        CapacityError: the cluster can never hold such a process; nothing was written.
    """
    whole = cluster.capacity()
    if not capacity.slots(whole, worker):
        raise CapacityError(
            f"a process is to have {worker.cpus} CPUs and {worker.gpus:g} GPUs, but the whole "
            f"cluster has {whole.cpus:g} CPUs and {whole.gpus:g} GPUs"
        )
    suffix = _SUFFIXES.get(shards[0].source.format, ".jsonl")
    visibility.check(model.storage, cluster)
    _claim(output, model, shards)
    visibility.check(output, cluster)
    there = output.find("")
    parts = [
        Part(model, shard, output, f"part-{number:06d}{suffix}", worker)
        for number, shard in enumerate(shards)
    ]
    missing = [part for part in parts if part.name not in there]
    log = cache_folder() / "predict" / uuid.uuid4().hex / "part.log"
    rows = cluster.map(label_part, missing, worker, log)
    output.write(_SUCCESS, b"")
    return Labelled(sum(rows), len(parts), len(parts) - len(missing))


def label_part(part: Part) -> int:
    """Label a part; the number of its rows. Its file appears whole."""
    predictor = _predictor(part.model, part.worker.cpus, use_gpu=bool(part.worker.gpus))
    output_format = "parquet" if part.name.endswith(_SUFFIXES["parquet"]) else "jsonl"
    with _new_part(part.output, part.name) as file:
        return inference.label(predictor, part.shard, file, output_format)


@lru_cache(maxsize=1)  # one process labels part after part
def _predictor(model: Model, threads: int, *, use_gpu: bool) -> Predictor:
    return model.load(use_gpu=use_gpu, threads=threads)


def _whole(source: str, task: TaskConfig) -> Shard:
    if source == STDIN:
        config = SourceConfig(path=files.STDIN, format="jsonl")
        return Shard(config, 0, (Span(files.STDIN, 0, END),))
    config, places = _source(source, task)
    return Shard(config, 0, tuple(Span(place, 0, END) for place in places))


def _source(source: str, task: TaskConfig) -> tuple[SourceConfig, list[str]]:
    """How an input is read, and its files."""
    input_format = format_of(source)
    if input_format not in _FORMATS:
        raise DataError(
            f"{source}: the suffix says nothing of its rows; give .jsonl, .csv, .parquet, or .txt "
            "with a text a line (a text itself is given with --text)"
        )
    if input_format == "lines" and task.data.text_pair is not None:
        raise DataError(f"{source}: the model takes two texts a row; give .jsonl, .csv or .parquet")
    is_name = files.scheme_of(source) is None and not glob.has_magic(source)
    if is_name and not Path(source).is_file():
        raise DataError(f"{source}: no such file")
    config = SourceConfig(
        path=source, format=input_format, text=task.data.text, encoding=task.data.encoding
    )
    return config, documents.expand(source, Path.cwd(), input_format)


def _output_format(output: Path) -> str:
    output_format = format_of(output.name)
    if output_format not in _SUFFIXES or output.suffix not in _SUFFIXES.values():
        raise DataError(f"{output}: predictions are written as .jsonl or .parquet")
    return output_format


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that has its name once it is whole."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file that is to be written")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(storage.explain(error, str(path))) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _new_part(output: Storage, name: str) -> Iterator[IO[bytes]]:
    """A file of the output that has its name once it is whole, on an object store, too."""
    if output.is_local:
        with _appearing(output.path(name)) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile() as copy:
        yield copy
        copy.flush()
        store, path = fsspec.url_to_fs(output.url(name))
        store.put_file(copy.name, path)


def _claim(output: Storage, model: Model, shards: Sequence[Shard]) -> None:
    """Say what a folder is of; or make sure that it is of the same.

    Raises:
        DataError: it is of something else.
    """
    places = dict.fromkeys(span.file for shard in shards for span in shard.spans)
    plan = {
        "schema_version": 1,
        "model": str(model.version),
        "store": model.storage.root,
        "fingerprint": ModelStore(model.storage).facts(model.version)["fingerprint"],
        "parts": len(shards),
        # The signature of a URL changes, and is nobody else's business.
        "input": {without_secrets(place): _state_of(place) for place in places},
    }
    content = json.dumps(plan, indent=1).encode()
    known = [name for name in output.find("") if not is_partial(name)]
    if known and _PLAN not in known:
        raise DataError(f"{output.root} has other files; give a new folder")
    with contextlib.suppress(AlreadyExistsError):
        output.create(_PLAN, content)
    if output.read(_PLAN) != content:
        raise DataError(
            f"{output.root} has predictions of another model, or of other rows than the input has "
            "now; give a new folder, or remove that one"
        )


def _state_of(place: str) -> str:
    """What changes when a file does."""
    if files.scheme_of(place) is None:
        state = Path(place).stat()
        return f"{state.st_size} bytes, {state.st_mtime_ns}"
    return outside.identity(place, files.info(place))
