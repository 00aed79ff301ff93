"""What the commands share: where they print, and how."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

FAILED, USAGE, STOPPED = 1, 2, 4
"""Exit codes."""

STORAGE = "./pretune-data"

out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
StorageOption = Annotated[str, typer.Option("--storage", help="The storage: a folder or URL.")]


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
