"""A pipeline to be run on another cluster: what is sent there, and what could not work there."""

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cluster import package
from cluster.jobs import DRIVER_ON, Job
from cluster.package import Package
from trainers import files
from workflows.config import ConfigError, PipelineConfig, load_config
from workflows.execution import RunPaths
from workflows.history import STAMP, SUBMISSION, new_run_id
from workflows.journal import DRIVER, Journal
from workflows.storage import Storage, scheme_of

RUN_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")

_PACKAGE, _PIPELINE = "pretune_package", "pretune_pipeline"


@dataclass(frozen=True)
class Wanted:
    """What a user asks to be submitted."""

    pipeline: Path
    """The file here; with `in_image` its path on the cluster."""
    overrides: Sequence[str] = ()
    run_id: str | None = None
    working_dir: Path | None = None
    """What is sent; None: the folder of the file."""
    in_image: bool = False
    """Whether the cluster has the files already."""
    environment: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    driver_resources: Mapping[str, float] = field(default_factory=dict)
    secrets: Sequence[Path] = ()
    """Files that are not sent, wherever they lie."""


@dataclass(frozen=True)
class Prepared:
    """What is sent, and where the run will be seen."""

    job: Job
    storage: str
    pipeline: str
    """Its name."""


def prepare(wanted: Wanted, storage: str | None, scratch: Path) -> Prepared:
    """Check what can be checked here, pack the files into `scratch`, and say what is sent.

    Raises:
        ConfigError: it could not run there; nothing was sent.
        PackageError: the files are too large.
    """
    overrides = [*wanted.overrides, *([f"storage={storage}"] if storage else [])]
    if wanted.in_image:
        return _prepared(wanted, overrides, str(wanted.pipeline), None, None)
    config = load_config(wanted.pipeline, overrides)
    folder = (wanted.working_dir or wanted.pipeline.parent).resolve()
    file = wanted.pipeline.resolve()
    if not file.is_relative_to(folder):
        raise ConfigError(f"{wanted.pipeline} is not in --working-dir {folder}, which is sent")
    left_out = [*_not_sent(config), *wanted.secrets]
    sent = package.pack(folder, scratch, leave_out=left_out)
    problems = list(_not_there(config, file.parent, folder, sent))
    if problems:
        raise ConfigError("\n".join(problems))
    return _prepared(wanted, overrides, file.relative_to(folder).as_posix(), config, sent)


def _prepared(
    wanted: Wanted,
    overrides: Sequence[str],
    pipeline: str,
    config: PipelineConfig | None,
    sent: Package | None,
) -> Prepared:
    name = config.name if config else re.sub(r"[^a-z0-9]+", "-", Path(pipeline).stem.lower())
    storage = config.storage if config else _named_storage(overrides)
    check_storage(storage)
    run_id = wanted.run_id or new_run_id(name)
    check_run_id(run_id)
    options = [f"--run-id={run_id}", *(f"--set={one}" for one in overrides)]
    command = ["pretune", "run", pipeline, *options, "--set=cluster.address=auto"]
    own = {
        _PIPELINE: name,
        _PACKAGE: sent.name if sent else None,
        DRIVER_ON: ", ".join(wanted.driver_resources),
    }
    job = Job(
        run_id,
        shlex.join(command),
        metadata={**wanted.metadata, **{key: value for key, value in own.items() if value}},
        environment=wanted.environment,
        package=sent,
        driver_resources=wanted.driver_resources,
    )
    return Prepared(job, storage, name)


def check_run_id(run_id: str) -> None:
    """Whether a run may be called so.

    Raises:
        ConfigError: it would be no name in all the places where it has to be one.
    """
    if not RUN_ID.fullmatch(run_id):
        raise ConfigError(
            f"--run-id {run_id}: expected small letters, digits and -_. between them, 63 at most"
        )


def visible(storage: str) -> Storage | None:
    """The storage, where it can be seen from here: an object store, or a folder that is here."""
    return Storage.at(storage) if scheme_of(storage) or Path(storage).is_dir() else None


def note(paths: RunPaths, pipeline: str, address: str, *, is_new: bool) -> None:
    """Write down where a run was submitted to, so that it is found by its name.

    How an earlier one of its name ended is no news of a new one.
    """
    if is_new:
        journal = Journal(paths.storage, paths.events, DRIVER)
        journal.append("run", outcome=None, said=[])
        journal.flush()
    told = {
        "schema_version": 1,
        "pipeline": pipeline,
        "started": datetime.now(UTC).strftime(STAMP),
        "address": address,
    }
    paths.storage.write(f"{paths.directory}/{SUBMISSION}", json.dumps(told).encode())


def address_of(paths: RunPaths) -> str | None:
    """Where a run was submitted to; None of one that was not, or not from where this is seen."""
    try:
        told = json.loads(paths.storage.read(f"{paths.directory}/{SUBMISSION}"))
    except FileNotFoundError:
        return None
    return str(told["address"])


def check_storage(storage: str) -> None:
    """Whether what is made outlives the run.

    Raises:
        ConfigError: it is a folder relative to where a command runs.
    """
    if not scheme_of(storage) and not Path(storage).is_absolute():
        raise ConfigError(
            f"storage: {storage} is a folder relative to where the command runs, which on a "
            "cluster is a temporary one; give --storage an object store, or the absolute path of a "
            "folder that all nodes share"
        )


def _named_storage(overrides: Sequence[str]) -> str:
    named = [one.partition("=")[2] for one in overrides if one.startswith("storage=")]
    if not named:
        raise ConfigError("a pipeline file in the image is not seen from here; give --storage")
    return named[-1]


def _not_sent(config: PipelineConfig) -> list[Path]:
    return [] if scheme_of(config.storage) else [Path(config.storage)]


def _not_there(config: PipelineConfig, base: Path, folder: Path, sent: Package) -> Iterator[str]:
    """Files that the pipeline names by relative paths and that would be missing there."""
    for key, path in named_files(config):
        if files.scheme_of(path) or Path(path).is_absolute():
            continue
        place = Path(base, path)
        normal = Path(*_parts(place))
        if not normal.is_relative_to(folder):
            yield (
                f"{key}: {path} is outside of {folder}, which is sent; give a --working-dir that "
                "holds both, or the absolute path of a file that all nodes see"
            )
        elif not _is_sent(normal.relative_to(folder).as_posix(), sent.files):
            why = "an ignore file leaves it out" if place.exists() else "it is not there"
            yield (
                f"{key}: {path} is not among the files that are sent: {why}; name it in .rayignore "
                "with a ! before it, or put it where all nodes see it and give the absolute path"
            )


def _parts(place: Path) -> list[str]:
    """Of a path, `..` taken away as the file system of the cluster will."""
    found: list[str] = []
    for part in place.parts:
        if part == "..":
            found.pop()
        else:
            found.append(part)
    return found


def _is_sent(name: str, sent: Sequence[str]) -> bool:
    return any(
        file == name or file.startswith(f"{name}/") or fnmatch.fnmatch(file, name) for file in sent
    )


def named_files(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    """Files and folders that a pipeline names, by where it names them."""
    if config.corpus:
        for number, source in enumerate(config.corpus.sources):
            if not source.step and source.format != "dataset":  # which may be one of a hub
                yield f"corpus.sources.{number}.path", source.path
    for name, task in config.tasks.items():
        for split, path in task.data.paths.items():
            yield f"tasks.{name}.data ({split})", path
    for section in ("base", "tokenizer", "model"):
        from_ = getattr(getattr(config, section), "from_", None)
        if from_:
            yield f"{section}.from", from_
    for name, step in config.steps.items():
        for key, path in step.files.items():
            yield f"steps.{name}.files.{key}", path
