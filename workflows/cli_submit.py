"""The verb that sends a pipeline to another cluster."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster import tokens
from cluster.jobs import Job, Jobs
from cluster.package import PackageError
from cluster.remote import ContactError, RefusedError
from workflows import submission
from workflows.console import (
    CONTACT_LOST,
    AsJson,
    Overrides,
    PipelineFile,
    err,
    out,
    print_json,
    usage_error,
)
from workflows.execution import RunPaths
from workflows.following import Follower
from workflows.submission import Prepared, Wanted

TokenFile = Annotated[
    Path | None,
    typer.Option(help="File of the cluster's token; else what Ray itself would take."),
]
Address = Annotated[
    str | None, typer.Option(metavar="URL", help="The Ray dashboard, such as http://head:8265.")
]
_ATTEMPTS, _PAUSE_S = 5, 3.0


def submit(
    pipeline: PipelineFile,
    address: Address = None,
    overrides: Overrides = None,
    storage: Annotated[
        str | None, typer.Option(help="Where all nodes and later you find what is made.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run; one that is there is attached to.")
    ] = None,
    working_dir: Annotated[
        Path | None, typer.Option(help="The folder that is sent; that of the file when absent.")
    ] = None,
    in_image: Annotated[
        bool, typer.Option("--in-image", help="Send nothing: the file's path is on the cluster.")
    ] = False,
    environment: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="A variable; without a value yours."),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the job.")
    ] = None,
    driver_on: Annotated[
        str | None,
        typer.Option(metavar="RESOURCE", help="Where the driver runs; on the head when absent."),
    ] = None,
    token_file: TokenFile = None,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Follow the run to its end, or leave it.")
    ] = True,
    pending_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Withdraw a run that has not begun by then.")
    ] = float("inf"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline on a Ray cluster that is there; it needs pretune on its nodes.

    The folder of the file is sent, but for what its ignore files name. A run id that is there
    already is attached to: the same command twice is one run. Ctrl-C leaves the run alone.

    Exit codes: 0 succeeded, 1 failed, 2 cannot be used, 3 not begun in time, 4 stopped, 5 contact
    lost.

    Example: `pretune submit examples/demo.yaml --address http://head:8265 --storage s3://b/demo`
    """
    wanted = Wanted(
        pipeline=pipeline,
        overrides=overrides or (),
        run_id=run_id,
        working_dir=working_dir,
        in_image=in_image,
        environment=dict(_variable(one) for one in environment or ()),
        metadata=dict(_pair(one, "--metadata") for one in metadata or ()),
        # As little as can be asked for: the node is what is wanted.
        driver_resources={driver_on: 0.001} if driver_on else {},
    )
    if address is None:
        raise usage_error("--address: where to? Give the URL of a Ray dashboard")
    with refusals_told(), tempfile.TemporaryDirectory() as scratch:
        prepared = submission.prepare(wanted, storage, Path(scratch))
        jobs = Jobs(address, tokens.find(token_file))
        console = Console(stderr=True) if as_json else out
        _describe(prepared, err if dry_run else console)
        if dry_run:
            print_json(_shown(prepared.job, environment or ()))
            return
        _warn_of_versions(jobs)
        is_new = _sent(jobs, prepared)
    name, seen = prepared.job.submission_id, submission.visible(prepared.storage)
    paths = RunPaths(seen, name) if seen else None
    if paths:
        submission.note(paths, prepared.pipeline, {"address": jobs.url})
    console.print(f"run {name} {'submitted' if is_new else 'was there: attached'}", highlight=False)
    code = 0
    if wait:
        how = f"pretune status {name} --watch --address {jobs.url} --storage {prepared.storage}"
        follower = Follower(jobs.run(name), paths, console, pending_timeout)
        code = follow_or_leave(follower, how)
    if as_json:
        print_json({"run": name, "is_new": is_new, "storage": prepared.storage, "exit_code": code})
    raise typer.Exit(code)


def follow_or_leave(follower: Follower, how: str) -> int:
    """Follow a run; Ctrl-C leaves it alone and tells how to look again."""
    try:
        return follower.follow()
    except RefusedError as error:
        raise usage_error(str(error)) from None
    except KeyboardInterrupt:
        err.print(f"left alone, it goes on; to look again: {how}", markup=False, soft_wrap=True)
        return 0


@contextlib.contextmanager
def refusals_told() -> Iterator[None]:
    """What a user got wrong about a cluster, as one message."""
    try:
        yield
    except (RefusedError, PackageError, tokens.TokenError) as error:
        raise usage_error(str(error)) from None
    except ContactError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(CONTACT_LOST) from None


def jobs_at(address: str, token_file: Path | None) -> Jobs:
    """The jobs of a cluster that the user named."""
    try:
        return Jobs(address, tokens.find(token_file))
    except ValueError as error:
        raise usage_error(str(error)) from None


def _describe(prepared: Prepared, console: Console) -> None:
    sent = prepared.job.package
    if sent is not None:
        line = f"sending {len(sent.files)} files, {sent.size_bytes:,} bytes"
        console.print(line, highlight=False)


def _shown(job: Job, environment: Sequence[str]) -> dict[str, Any]:
    """What is sent, without values that were not written in the command: they may be secrets."""
    taken = {one: "<taken from here>" for one in environment if "=" not in one}
    return replace(job, environment={**job.environment, **taken}).as_request()


def _sent(jobs: Jobs, prepared: Prepared) -> bool:
    """Submit; an answer that was lost is asked for again, which submits nothing twice."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return jobs.submit(prepared.job)
        except ContactError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError


def _warn_of_versions(jobs: Jobs) -> None:
    from importlib.metadata import version

    there, here = jobs.ray_version(), version("ray")
    if there != here:
        err.print(f"the cluster runs Ray {there}, and pretune is tested with {here}", markup=False)


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if separator:
        return name, value
    if name not in os.environ:
        raise usage_error(f"--env {name}: there is no such variable; give {name}=VALUE")
    return name, os.environ[name]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise usage_error(f"{option} {text}: expected KEY=VALUE")
    return name, value
