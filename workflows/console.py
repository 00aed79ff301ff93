"""What the commands share: where they print, and how."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

FAILED, USAGE, NOT_ADMITTED, STOPPED, CONTACT_LOST, RESUME_ME = 1, 2, 3, 4, 5, 75
"""Exit codes. The last is EX_TEMPFAIL of sysexits.h: a scheduler ended the run, start it again."""

STORAGE = "./pretune-data"

out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only the last lines, and what went wrong.")
]
PipelineFile = Annotated[Path, typer.Argument(help="The pipeline file.", metavar="PIPELINE.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one value.")
]
StorageOption = Annotated[str, typer.Option("--storage", help="The storage: a folder or URL.")]


def progress_console(*, as_json: bool, quiet: bool = False) -> Console:
    """Where progress is shown: beside what is for machines, or nowhere."""
    return Console(stderr=as_json, quiet=quiet)


def usage_error(message: str) -> typer.Exit:
    """Print a message; raise what is returned to end with the exit code of a wrong usage."""
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(USAGE)


def table_of(rows: list[dict[str, Any]]) -> Table:
    """One column a key, one line a row."""
    table = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        cells = [str("" if row.get(name) is None else row[name]) for name in names]
        table.add_row(*cells)
    return table


def print_json(value: Any) -> None:
    """Print a value for machines."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")
