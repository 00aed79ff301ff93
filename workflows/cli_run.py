"""Runs as commands start them: until they end, or somebody stops them."""

import signal
from dataclasses import dataclass
from types import FrameType

import typer

from cluster.capacity import CapacityError
from cluster.interface import UnreachableError
from workflows.console import FAILED, RESUME_ME, STOPPED, USAGE, err, progress_console, usage_error
from workflows.planning import Selection
from workflows.run_result import RunResult
from workflows.session import Session


def run_until_it_ends(
    opened: Session, selection: Selection, *, fail_fast: bool, as_json: bool, quiet: bool = False
) -> RunResult:
    """Run what is selected until it ends; who stops it is told how to go on."""
    console = progress_console(as_json=as_json, quiet=quiet)
    planned = opened.plan(selection)
    if planned.missing:
        name, missing = next(iter(planned.missing.items()))
        raise usage_error(f"{name} needs {', '.join(missing)}; run them first, or leave --only out")
    terminated = _Terminated()
    signal.signal(signal.SIGTERM, terminated)
    try:
        result = opened.run(console, planned, fail_fast=fail_fast)
    except (CapacityError, UnreachableError) as error:
        raise usage_error(str(error)) from None
    except KeyboardInterrupt:
        result = RunResult({}, is_stopped=True)
    if result.is_stopped:
        _print_told(result)
        raise typer.Exit(RESUME_ME if terminated.is_given else STOPPED)
    return result


def end_by_failures(result: RunResult) -> None:
    """Tell what failed, and exit with a code that says so."""
    _print_told(result)
    if result.failures:
        is_usage = all(failure.is_input_error for failure in result.failures)
        raise typer.Exit(USAGE if is_usage else FAILED)


def _print_told(result: RunResult) -> None:
    for line in result.told():
        err.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass
class _Terminated:
    """Handles a scheduler's notice: it ends a run as Ctrl-C does, and is told apart."""

    is_given: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.is_given = True
        raise KeyboardInterrupt
