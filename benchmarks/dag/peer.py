"""What every measured peer shares: its command line and the one JSON line it prints."""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What to run: `python peer_x.py {wide|chain} N FOLDER`."""

    shape: str
    """`wide`: N steps that need nothing; `chain`: each step needs the one before it."""

    steps: int
    """How many no-op steps the graph has."""

    folder: Path
    """An empty folder on the disk under test; everything durable goes below it."""


@dataclass(frozen=True)
class Measurement:
    """What one run of one peer gave."""

    peer: str
    shape: str
    steps: int

    seconds: float
    """The graph's execution alone: no imports, no server start, no warm-up."""

    persisted: int
    """Step results found on disk after the run, counted there and not by the peer."""

    recorded_s: float | None
    """From the same start until the run's records were on disk too; None: it keeps none."""

    versions: dict[str, str]

    def print_line(self) -> None:
        """Print the JSON line that `run.py` reads from standard output."""
        print(json.dumps(asdict(self)), flush=True)


def parse_request(description: str | None) -> Request:
    """The command line of this process as a `Request`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("shape", choices=("wide", "chain"))
    parser.add_argument("steps", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    return Request(given.shape, given.steps, given.folder.resolve())


def installed_versions(distributions: Sequence[str]) -> dict[str, str]:
    """Python's version and those of the named distributions."""
    return {"python": platform.python_version()} | {name: version(name) for name in distributions}


def count_filled_files(folder: Path) -> int:
    """Files below `folder` that are not empty."""
    return sum(path.is_file() and path.stat().st_size > 0 for path in folder.rglob("*"))
