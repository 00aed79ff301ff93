"""The verb that sends a pipeline to another cluster."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.package import PackageError
from cluster.remote import ContactError, RefusedError
from cluster.tokens import TokenError
from workflows import submission
from workflows.console import (
    CONTACT_LOST,
    AsJson,
    Overrides,
    Quiet,
    err,
    out,
    print_json,
    usage_error,
)
from workflows.execution import RunPaths
from workflows.following import Follower
from workflows.storage import StorageError
from workflows.submitting import Asked, Concurrency, Sent, SkippedError, to_kube, to_ray

TokenFile = Annotated[
    Path | None,
    typer.Option(help="File of the cluster's token; else what Ray itself would take."),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The Ray dashboard, such as http://head:8265; or kube://NAMESPACE."
    ),
]


def submit(
    pipeline: Annotated[
        Path | None, typer.Argument(help="The pipeline file.", metavar="[PIPELINE.yaml]")
    ] = None,
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
    kube: Annotated[
        bool, typer.Option("--kube", help="Create a RayJob in Kubernetes instead of --address.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option("--from", metavar="raycronjob/NAME", help="Its template, in the cluster."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Its template, as a file.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Of Kubernetes.")] = None,
    context: Annotated[str | None, typer.Option(help="Of kubectl.")] = None,
    image: Annotated[str | None, typer.Option(help="Of the Ray containers.")] = None,
    queue: Annotated[str | None, typer.Option(help="Of Kueue.")] = None,
    priority: Annotated[str | None, typer.Option(help="WorkloadPriorityClass of Kueue.")] = None,
    concurrency: Annotated[
        Concurrency | None,
        typer.Option(help="While a run of the template goes on; allow when absent."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Delete its other finished RayJobs but so many.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Follow the run to its end, or leave it.")
    ] = True,
    pending_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Withdraw a run that has not begun by then.")
    ] = float("inf"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline on a Ray cluster that is there, or on one that KubeRay makes for it.

    With --address the folder of the file is sent, but for what its ignore files name, to a cluster
    whose nodes have pretune. With --kube a RayJob is created from a template, which says what runs.

    A run id that is there already is attached to: the same command twice is one run. Ctrl-C leaves
    the run alone. Exit codes: 0 succeeded, 1 failed, 2 cannot be used, 3 not begun in time, 4
    stopped, 5 contact lost.

    Example: `pretune submit examples/demo.yaml --address http://head:8265 --storage s3://b/demo`
    """
    asked = Asked(**locals())
    console = Console(stderr=True) if as_json else out
    with refusals_told():
        sent = to_kube(asked) if kube else to_ray(asked, err if dry_run else console)
    if sent.remote is None:
        print_json(sent.plan)
        return
    paths = _noted(sent)
    how_new = "submitted" if sent.is_new else "was there: attached"
    console.print(f"run {sent.run_id} {how_new}", highlight=False)
    code = 0
    if wait:
        place = f" --storage {sent.storage}" if sent.storage else ""
        how = f"pretune status {sent.run_id} --watch --address {sent.address}{place}"
        follower = Follower(sent.remote, paths, console, pending_timeout, quiet)
        code = follow_or_leave(follower, how)
        if code and not sent.is_new:
            console.print("it was there before; another --run-id goes on with what is finished")
    if as_json:
        facts = {"run": sent.run_id, "is_new": sent.is_new, "address": sent.address}
        print_json({**facts, "storage": sent.storage, "exit_code": code})
    raise typer.Exit(code)


def _noted(sent: Sent) -> RunPaths | None:
    """Where the run will be seen, with a note of where it was submitted to."""
    seen = submission.visible(sent.storage) if sent.storage else None
    if seen is None:
        return None
    paths = RunPaths(seen, sent.run_id)
    try:
        submission.note(paths, sent.pipeline, sent.address, is_new=sent.is_new)
    except StorageError as error:  # the cluster's nodes may have credentials that are not here
        line = f"the storage is not seen from here: {error}; the driver's log is shown instead"
        err.print(line, markup=False, highlight=False, soft_wrap=True)
        return None
    return paths


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
    except (RefusedError, PackageError, TokenError) as error:
        raise usage_error(str(error)) from None
    except SkippedError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(0) from None
    except ContactError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(CONTACT_LOST) from None
