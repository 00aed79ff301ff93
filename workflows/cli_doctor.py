"""The verb that looks for what is wrong with a cluster."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from cluster.config import ClusterConfig
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
