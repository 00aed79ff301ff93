"""What every subject shares: what is trained, its command line, and the JSON line it prints.

Imports neither torch nor transformers: start-up is measured too.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

REQUEST = "request.json"
ROWS = "rows.npy"
"""Token ids in the order of training, shape (steps, sequences, length)."""
DOCUMENTS = "documents.json"
"""Token ids of each short text, the end token before them."""
TOKENIZER = "tokenizer"
TOKENS = "tokens"
MODEL = "model"
"""The model's whole configuration, for the peers."""

PACKAGES = ("torch", "transformers", "deepspeed", "ray", "tokenizers", "numpy")


@dataclass(frozen=True)
class Request:
    """What is trained; the same for all subjects. Beside it lie the files named above."""

    architecture: str
    network: dict[str, Any]
    """Pretune's `model.config`."""
    packing: str
    sequence_length: int
    batch: int
    """Sequences in one optimizer step over all ranks."""
    texts: int
    """Short texts in one optimizer step of a peer that does not pack them."""
    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clipping: float = 1.0
    seed: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Request":
        """What `write` wrote."""
        return cls(**json.loads((folder / REQUEST).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Leave it in the folder that all subjects read."""
        (folder / REQUEST).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def learning_rate_at(self, step: int) -> float:
        """Half a cosine from the peak to zero, without warm-up: what all subjects can do alike."""
        return self.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass
class Measurement:
    """What one run of one subject gave."""

    ends: list[float] = field(default_factory=list)
    """Clock at the end of each optimizer step: seconds, the same zero in all processes."""
    losses: list[float] = field(default_factory=list)
    """Of each step, the mean over all ranks."""
    tokens: list[int] = field(default_factory=list)
    """Of each step, without padding."""
    positions: list[int] = field(default_factory=list)
    """Of each step, with padding: what the model computed."""
    parameters: int = 0
    marks: dict[str, float] = field(default_factory=dict)
    """Clock at the end of each part of start-up."""
    versions: dict[str, str] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """A part of start-up has ended."""
        self.marks[name] = time.monotonic()

    def end_step(self) -> None:
        """An optimizer step has ended."""
        self.ends.append(time.monotonic())

    def print_line(self, *packages: str) -> None:
        """Print the JSON line that `pretraining.py` reads from standard output."""
        self.versions = {"python": sys.version.split()[0]}
        self.versions |= {name: version(name) for name in (*PACKAGES, *packages)}
        print(json.dumps(asdict(self)), flush=True)


def leave() -> None:
    """End this process well: gloo's threads abort it now and then while Python takes them down."""
    sys.stdout.flush()
    os._exit(0)


@dataclass(frozen=True)
class Arguments:
    """The command line of a subject."""

    shared: Path
    """What all subjects read."""
    folder: Path
    """An empty folder of this run."""
    stage: int
    """ZeRO stage, where there are several ranks."""


def parse_arguments(description: str | None) -> Arguments:
    """The command line of this process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("shared", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", type=int, default=1)
    return Arguments(**vars(parser.parse_args()))
