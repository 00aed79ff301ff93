"""What every subject shares: its command line, its Ray, and the JSON line it prints."""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from regimes import CPUS, NAMES, Regime, regime_of

_PACKAGES = ("torch", "transformers", "ray", "peft", "accelerate", "numpy")
# Unix socket paths may have 107 characters; Ray adds about 70 to this folder.
_SHORT_TEMPORARY_FOLDER = "/tmp"
_QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class Arguments:
    """The command line of a subject."""

    shared: Path
    """What all subjects read."""
    folder: Path
    """An empty folder of this run: the storage of the search."""
    regime: Regime


def parse_arguments(description: str | None) -> Arguments:
    """The command line of this process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("shared", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("regime", choices=NAMES)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    return Arguments(
        given.shared.resolve(),
        given.folder.resolve(),
        regime_of(given.regime, is_quick=given.quick),
    )


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of this process' own, which has worked once: its start is not what is measured."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with tempfile.TemporaryDirectory(prefix="search-", dir=_SHORT_TEMPORARY_FOLDER) as temporary:
        ray.init(
            address="local",
            num_cpus=CPUS,
            include_dashboard=False,
            _temp_dir=temporary,
            **_QUIET,
        )
        try:
            _await_workers()
            yield
        finally:
            ray.shutdown()


def join_ray(address: str) -> None:
    """Join a Ray from another process, and wait until it has worked for this one, too."""
    ray.init(address=address, **_QUIET)
    _await_workers()


def _await_workers() -> None:
    ray.get([ray.remote(_nothing).remote() for _ in range(CPUS)])


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Trial:
    """What became of one point."""

    task: str
    point: Mapping[str, Any]
    score: float
    """The task's metric on the validation rows after the last epoch."""
    loss: float
    """Mean over the training steps of the last epoch."""


@dataclass
class Measurement:
    """What one run of one subject gave."""

    seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    bytes_written: int = 0
    """Of checkpoints, those that were removed again included."""
    versions: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Around what is measured: from reading rows and base to the last trial's score."""
        started = time.monotonic()
        yield
        self.seconds = time.monotonic() - started

    def print_line(self) -> None:
        """Print the JSON line that `search.py` reads from standard output."""
        self.versions = {"python": sys.version.split()[0]}
        self.versions |= {name: version(name) for name in _PACKAGES}
        print(json.dumps(asdict(self)), flush=True)


@dataclass(frozen=True)
class Ledger:
    """Counts the bytes of checkpoints in all processes of a search. Picklable."""

    folder: Path

    def add(self, directory: Path | str) -> None:
        """A checkpoint was written into a directory."""
        with (self.folder / str(os.getpid())).open("a", encoding="utf-8") as file:
            file.write(f"{size_bytes(Path(directory))}\n")

    def total(self) -> int:
        """Of all processes."""
        lines = (line for file in self.folder.iterdir() for line in file.read_text().split())
        return sum(map(int, lines))


def new_ledger(folder: Path) -> Ledger:
    """A ledger in a run's folder."""
    (folder / "ledger").mkdir()
    return Ledger(folder / "ledger")


def size_bytes(directory: Path) -> int:
    """Of all files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
