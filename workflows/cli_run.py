"""Runs as commands start them: until they end, or somebody stops them."""

import signal
from dataclasses import dataclass
from types import FrameType

import typer
from rich.console import Console

from cluster.capacity import CapacityError
from cluster.interface import UnreachableError
from workflows.console import FAILED, RESUME_ME, STOPPED, USAGE, err, out, usage_error
from workflows.planning import AVAILABLE, Selection
from workflows.runner import RunResult
from workflows.session import Session


def run_until_it_ends(
    opened: Session, selection: Selection, *, fail_fast: bool, as_json: bool
) -> RunResult:
    """Run what is selected until it ends; who stops it is told how to go on."""
    console = Console(stderr=True) if as_json else out
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
        result = None
    if result is None or result.is_stopped:
        for name, said in (result.stopped if result else {}).items():
            err.print(f"{name}: {said}", markup=False, highlight=False, soft_wrap=True)
        err.print("stopped; what was finished is kept, run the same command to go on")
        raise typer.Exit(RESUME_ME if terminated.is_given else STOPPED)
    return result


def end_by_failures(result: RunResult) -> None:
    """Tell what failed, and exit with a code that says so."""
    _print_failures(result)
    if result.failures:
        is_usage = all(failure.is_input_error for failure in result.failures)
        raise typer.Exit(USAGE if is_usage else FAILED)


def _print_failures(result: RunResult) -> None:
    done = sum(state in AVAILABLE for state in result.states.values())
    for failure in result.failures:
        err.print(f"[red]failed:[/red] {failure.step}: ", end="")
        err.print(failure.cause, markup=False, soft_wrap=True)
        err.print(f"        log: {failure.log}", markup=False, soft_wrap=True)
        err.print(
            f"        kept: {done} finished steps{failure.kept}", markup=False, soft_wrap=True
        )
        err.print("        next: mend the cause and run the same command again", markup=False)


@dataclass
class _Terminated:
    """Handles a scheduler's notice: it ends a run as Ctrl-C does, and is told apart."""

    is_given: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.is_given = True
        raise KeyboardInterrupt
