"""The verbs about a cluster itself: what is wrong with it, and a node of it that goes."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from cluster.config import ClusterConfig
from cluster.interface import UnreachableError
from workflows.config import load_config
from workflows.console import FAILED, AsJson, Overrides, err, out, print_json, usage_error
from workflows.storage import Storage

_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def doctor(
    pipeline: Annotated[
        Path | None,
        typer.Argument(metavar="[PIPELINE.yaml]", help="Its cluster, storage and workers count."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The cluster; a local Ray when there is none."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="A folder or URL that all nodes are to see.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with a cluster before it costs hours; under a minute.

    Versions, GPUs, memory, disks, clocks and ports of every node, the token, the storage, MLflow,
    and how fast the nodes sum a tensor together. Run it on a machine of the cluster. Nothing stays.

    Exit codes: 0 nothing or warnings, 1 errors, 2 cannot be used.

    Example: `pretune doctor examples/demo.yaml --address head:6379`
    """
    config = load_config(pipeline, overrides or ()) if pipeline else None
    named = storage or (config.storage if config else None)
    if config is not None:
        address = address or config.cluster.address
    try:
        ClusterConfig(address=address)
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise usage_error(f"--address {address}: {told}") from None
    where = Storage.at(named) if named else None

    from workflows.doctor import Wanted, examine  # loads Ray

    with err.status("connecting") as status:
        found = examine(Wanted(address, where, config), status.update)
    if as_json:
        print_json(found.as_dict())
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name in ("level", "check"):
            table.add_column(name, no_wrap=True)
        table.add_column("what", overflow="fold")
        for finding in found.findings:
            what = f"{finding.node}: {finding.what}" if finding.node else finding.what
            told = f"{what}\n-> {finding.remedy}" if finding.remedy else what
            style = _STYLES[finding.level]
            table.add_row(Text(finding.level, style=style), finding.check, Text(told))
        out.print(table)
        levels = [str(finding.level) for finding in found.findings]
        counts = f"errors: {levels.count('error')}, warnings: {levels.count('warning')}"
        out.print(f"{counts}, {found.seconds:.0f} s", highlight=False)
    if found.has_errors:
        raise typer.Exit(FAILED)


def drain(
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", envvar="RAY_ADDRESS", help="The head's GCS.")
    ],
    node: Annotated[
        str | None, typer.Option(metavar="ID", help="Its beginning will do; else this machine's.")
    ] = None,
    within: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="After them the node is gone.")
    ] = 100,
) -> None:
    """Announce that a node goes, and wait until the gangs that train there have left.

    They save a checkpoint first and go on elsewhere, which counts as no failed attempt. What a pod
    calls before it stops, or a machine that was told its end.

    Exit codes: 0 none is left, 1 some did not leave in time, 2 no such node.

    Example: `pretune drain --address head:6379 --within 60`
    """
    from cluster.leaving import Leaving  # loads Ray

    try:
        leaving = Leaving(address, node)
    except UnreachableError as error:
        raise usage_error(str(error)) from None
    leaving.announce(within)
    left = leaving.wait_for_ranks(within)
    out.print(f"node {leaving.node[:8]}: {left} ranks are still there", highlight=False)
    if left:
        raise typer.Exit(FAILED)
