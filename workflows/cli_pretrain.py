"""The command about pretraining: `pretune verify-resume`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.capacity import CapacityError
from cluster.interface import TaskFailedError, UnreachableError
from workflows.config import load_config
from workflows.console import (
    FAILED,
    AsJson,
    Overrides,
    PipelineFile,
    err,
    out,
    print_json,
    usage_error,
)
from workflows.session import Session


def verify_resume(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=6, help="Optimizer steps of each training.")] = 30,
    kills: Annotated[int, typer.Option(min=1, help="Times a worker is killed.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the steps at which that happens.")] = 0,
    certificate: Annotated[
        Path | None, typer.Option(help="Write the certificate here, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove on your own pipeline that pretraining resumes exactly.

    Trains its first steps three times: in peace, with workers killed (SIGKILL) at random steps, and
    with the number of workers changed twice on the way. Passed is: after kills the final weights
    are the same to the last bit; after resizing the samples are the same and losses agree to 1e-5.
    Exit code 1 where they do not.

    Example: `pretune verify-resume examples/demo.yaml --steps 30 --kills 3`
    """
    from workflows import verification  # loads torch

    config = verification.shortened(load_config(pipeline, overrides or ()), steps, kills)
    opened = Session.open(config, pipeline.resolve().parent)
    console = Console(stderr=True) if as_json else out
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray Train talks in the driver, too
            found = verification.run(opened, console, kills=kills, seed=seed)
    except (CapacityError, UnreachableError) as error:
        raise usage_error(str(error)) from None
    except TaskFailedError as error:
        err.print(f"not verified: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    if certificate:
        certificate.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            if isinstance(value, bool | float | str | int):
                out.print(f"{name}: {value}", highlight=False)
    if found["verdict"] != "passed":
        raise typer.Exit(FAILED)
