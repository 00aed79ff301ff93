"""Pipelines from Python: what the command line does, with values instead of lines.

`from workflows import load_config, build_steps, run`; see docs/python.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from workflows import outside, pipeline
from workflows.config import PipelineConfig, load_config
from workflows.planning import Selection
from workflows.run_result import Failure
from workflows.session import Session
from workflows.steps import Step

__all__ = ["Run", "build_steps", "load_config", "run"]


@dataclass(frozen=True)
class Run:
    """How a run ended."""

    run_id: str
    states: Mapping[str, str]
    """By step: `done`, `reused`, `failed`, `blocked`, `stopped`, ..."""
    failures: Sequence[Failure]
    """Empty where all went well."""
    promotions: Mapping[str, Mapping[str, Any]]
    """By the step that judged: the `model`, the `outcome`, the `reason`, the statistics."""
    champions: Mapping[str, str]
    """By model: `name@version`."""
    report: str
    """Path or URL of the HTML report."""


def build_steps(config: PipelineConfig, folder: Path = Path()) -> list[Step]:
    """The steps of a pipeline, each behind its inputs; looks at the data and writes nothing.

    Args:
        config: of the pipeline.
        folder: that relative paths in it are relative to.

    Raises:
        ConfigError: the data is not what the configuration says.
    """
    return pipeline.build_steps(config, outside.inspect(config, folder.resolve()))


def run(
    config: PipelineConfig,
    folder: Path = Path(),
    *,
    run_id: str | None = None,
    force: Iterable[str] = (),
    console: Console | None = None,
) -> Run:
    """Run a pipeline to its end; what is done already is reused, what was interrupted goes on.

    A step that fails raises nothing: see `Run.failures`. Ctrl-C, as in a notebook's cell that is
    interrupted, ends it cleanly, and the same call goes on.

    Args:
        config: of the pipeline.
        folder: that relative paths in it are relative to.
        run_id: its name; one that is there goes on.
        force: steps that are computed anew.
        console: shows how far it is; nothing is shown where absent.

    Raises:
        ConfigError: the data is not what the configuration says.
        CapacityError: the cluster can never hold the workers.
        UnreachableError: there is no cluster at `cluster.address`.
    """
    opened = Session.open(config, folder.resolve(), run_id=run_id)
    planned = opened.plan(Selection(force=frozenset(force)))
    result = opened.run(console or Console(quiet=True), planned)
    told = opened.summary(result)
    return Run(
        told["run"],
        told["states"],
        result.failures,
        told["promotions"],
        told["champions"],
        told["report"],
    )
