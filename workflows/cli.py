"""The command `pretune`. Loads no heavy library until a pipeline really runs."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cluster.config import POPULATION
from workflows import session
from workflows.cli_cluster import doctor, drain
from workflows.cli_init import init
from workflows.cli_k8s import k8s
from workflows.cli_models import models
from workflows.cli_predict import predict
from workflows.cli_pretrain import verify_resume
from workflows.cli_run import end_by_failures, run_until_it_ends
from workflows.cli_runs import compare, list_runs, logs, report, status, stop
from workflows.cli_submit import submit
from workflows.config import ConfigError, PipelineConfig, load_config
from workflows.console import (
    STOPPED,
    STORAGE,
    USAGE,
    AsJson,
    Overrides,
    PipelineFile,
    Quiet,
    StorageOption,
    err,
    out,
    print_json,
    progress_console,
    table_of,
    usage_error,
)
from workflows.models import ModelStoreError
from workflows.planning import Selection, UnknownStepError
from workflows.session import Session
from workflows.steps import Step
from workflows.storage import Storage, StorageError
from workflows.submission import check_run_id
from workflows.suggestions import suggestion

app = typer.Typer(
    help="Pretrain once, tune for everything, promote what is proved.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.add_typer(models, name="models")
app.add_typer(k8s, name="k8s")
app.command()(init)
app.command()(predict)
app.command()(verify_resume)
app.command()(doctor)
app.command()(drain)
app.command()(submit)
app.command()(status)
app.command()(logs)
app.command()(stop)
app.command("list")(list_runs)
app.command()(compare)
app.command()(report)

Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="STEP", help="Run this step and no other.")
]
From = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="STEP", help="Compute this and all behind it anew."),
]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STEP", help="Compute this alone anew.")
]


@app.command()
def validate(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check a pipeline file and the data it names, without running anything.

    Example: `pretune validate examples/demo.yaml`
    """
    opened = _open(pipeline, overrides)
    if as_json:
        print_json({"valid": True, "steps": len(opened.steps), "name": opened.config.name})
    else:
        out.print(f"{pipeline}: fine, {len(opened.steps)} steps")


@app.command()
def plan(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    only: Only = None,
    from_: From = None,
    force: Force = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Look what the base is worth on each task instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do with each step, why, and what it needs.

    REUSE: there is a result. RUN: there is none; the reason is the field, input or file that
    changed. BLOCKED: an input is missing. DRIFT: the result was computed by other code.

    With --probe a head is trained above the base, as it is, on a few rows of each task; its scores
    on the validation rows stand beside those of methods without a network.

    Example: `pretune plan examples/demo.yaml --set pretrain.seed=1`
    """
    from workflows.explain import explain

    if probe:
        if only or from_ or force:
            raise usage_error("--probe looks at all tasks; leave --only, --from and --force out")
        _probe(pipeline, overrides, as_json=as_json)
        return
    opened = _open(pipeline, overrides)
    found = list(explain(opened, opened.plan(_selection(only, from_, force))))
    if as_json:
        print_json([explanation.as_dict() for explanation in found])
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("plan", no_wrap=True)
    table.add_column("why and what for", overflow="fold")
    for explanation in found:
        table.add_row(explanation.step, explanation.plan, Text(explanation.line))
    out.print(table)


@app.command()
def run(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    only: Only = None,
    from_: From = None,
    force: Force = None,
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--keep-going", help="End at the first failure, or run what it spares."
        ),
    ] = False,
    run_id: Annotated[
        str | None,
        typer.Option(envvar="PRETUNE_RUN_ID", help="Name of the run; one that is there goes on."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(envvar="PRETUNE_STORAGE", help="Instead of the file's storage.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline; what is done already is reused, what was interrupted goes on.

    Ctrl-C ends it cleanly, a second one at once. So does SIGTERM, with exit code 75: a scheduler is
    to start the same command again.

    Example: `pretune run examples/demo.yaml`
    """
    if run_id is not None:
        check_run_id(run_id)
    changes = [*(overrides or ()), *([f"storage={storage}"] if storage else [])]
    opened = _open(pipeline, changes, run_id)
    if run_id is not None and opened.paths.was_asked_to_stop:
        # Whoever starts a command that has failed once more, as KubeRay does, is told again.
        err.print(f"{run_id} was asked to stop; another --run-id goes on with what is finished")
        raise typer.Exit(STOPPED)
    selection = _selection(only, from_, force)
    _run_to_the_end(opened, selection, fail_fast=fail_fast, as_json=as_json, quiet=quiet)


@app.command()
def extend(
    pipeline: PipelineFile,
    task: Annotated[str, typer.Argument(help="The task, as the pipeline file names it.")],
    trials: Annotated[str, typer.Option(metavar="+N", help="Trials more than there are.")],
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a finished search: more trials, which know of all there were.

    What follows from the search runs anew: the final training, promotion, the report. The file
    stays as it is; with as many `search.trials` in it, `pretune run` reuses all of this.

    Example: `pretune extend examples/demo.yaml sentiment --trials +20`
    """
    from workflows import tuning  # loads torch

    opened = _open(pipeline, overrides)
    if task not in opened.config.tasks:
        raise usage_error(f"no task {task!r}{suggestion(task, opened.config.tasks)}")
    if not trials.removeprefix("+").isdecimal() or not int(trials):
        raise usage_error(f"--trials {trials}: expected a number of further trials, such as +20")
    step = next(step for step in opened.steps if step.name == f"{task}.tune")
    finished = tuning.longest(opened.artifacts, step)
    if finished is None:
        raise usage_error(f"{step.name} has no finished search yet; run the pipeline first")
    if opened.config.tasks[task].search.scheduler == "pbt" and int(trials) < POPULATION:
        raise usage_error(f"--trials {trials}: a further population is {POPULATION} at least")
    number = tuning.ended(finished) + int(trials)
    console = progress_console(as_json=as_json, quiet=quiet)
    console.print(f"{task}: from {tuning.ended(finished)} to {number} trials", highlight=False)
    longer = _open(pipeline, [*(overrides or ()), f"tasks.{task}.search.trials={number}"])
    allowed = longer.config.searches[task].trials
    if allowed < number:
        raise usage_error(f"budget.trials allows {task} {allowed} trials; raise it with --set")
    _run_to_the_end(longer, Selection(), fail_fast=False, as_json=as_json, quiet=quiet)


def _probe(pipeline: Path, overrides: list[str] | None, *, as_json: bool) -> None:
    """Look at each task that a head can learn; the base must be there."""
    config = load_config(pipeline, overrides or ())
    opened = Session.open(config, pipeline.resolve().parent, probes=True)
    cheap = {step.name for step in opened.steps if step.kind in ("data", "base", "probe")}
    selection = Selection(only=frozenset(cheap))
    if opened.plan(selection).missing:
        raise usage_error("the base is not there yet, to be looked at; pretune run makes it first")
    result = run_until_it_ends(opened, selection, fail_fast=False, as_json=as_json)
    looks = [_look(opened, step) for step in opened.steps if step.kind == "probe"]
    found = [look for look in looks if look]
    if as_json:
        print_json(found)
    elif found:
        unseen = ("task", "rows")  # so that a line fits into 80 columns
        out.print(table_of([{key: one[key] for key in one if key not in unseen} for one in found]))
    end_by_failures(result)


def _look(opened: Session, step: Step) -> dict[str, Any]:
    """What a look at a base found; nothing where it failed."""
    record = opened.artifacts.find(step)
    if record is None:
        return {}
    task, _, _ = step.name.rpartition(".")
    metric = opened.config.tasks[task].metric
    scores = {"head": record.facts["head"], **record.facts["baselines"]}
    of_metric = {name: round(found[metric], 4) for name, found in scores.items()}
    about = {"step": step.name, "task": task, "metric": metric, "rows": record.facts["rows"]}
    return about | of_metric


def _run_to_the_end(
    opened: Session, selection: Selection, *, fail_fast: bool, as_json: bool, quiet: bool
) -> None:
    """Run what is selected, tell what came of it, exit with a code that says so."""
    result = run_until_it_ends(opened, selection, fail_fast=fail_fast, as_json=as_json, quiet=quiet)
    summary = opened.summary(result)
    if as_json:
        print_json(summary)
    else:
        for line in session.summary_lines(summary):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    end_by_failures(result)


@app.command()
def adopt(
    pipeline: PipelineFile,
    step: Annotated[str, typer.Argument(help="The step, as `pretune plan` names it.")],
    path: Annotated[Path, typer.Argument(help="The folder that stands for its output.")],
    overrides: Overrides = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the step has an output.")
    ] = False,
) -> None:
    """Take an existing checkpoint or dataset in as a step's output.

    Example: `pretune adopt pipeline.yaml pretrain ./my-base-model`
    """
    from workflows import adoption

    opened = _open(pipeline, overrides)
    opened.plan(Selection(only=frozenset({step})))  # there must be such a step
    chosen = next(found for found in opened.steps if found.name == step)
    try:
        record = adoption.adopt(chosen, path, opened.artifacts, opened.paths.run_id, force=force)
    except adoption.AdoptionError as error:
        raise usage_error(str(error)) from None
    size = sum(file["size"] for file in record.files.values())
    out.print(f"{step}: took in {len(record.files)} files, {size:,} bytes", highlight=False)


@app.command()
def gc(
    storage: StorageOption = STORAGE,
    keep_runs: Annotated[
        int, typer.Option(min=1, help="Newest runs of each pipeline whose artifacts stay.")
    ] = 10,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; else only tell.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find what nothing needs any more, and with --delete remove it.

    Kept are the results of the newest runs, what they could still go on from, and what versions of
    the model store came from. What a live process holds is never touched.

    Example: `pretune gc --storage ./pretune-data --keep-runs 3`
    """
    from workflows.garbage import Collector

    collector = Collector(Storage.at(storage), keep_runs=keep_runs)
    found = collector.find()
    if delete:
        found = collector.remove(found)
    if as_json:
        facts = ("name", "size_bytes", "why")
        print_json([{fact: getattr(garbage, fact) for fact in facts} for garbage in found])
        return
    for garbage in found:
        line = f"{garbage.size_bytes:>14,}  {garbage.name}  ({garbage.why})"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    total = sum(garbage.size_bytes for garbage in found)
    done = "removed" if delete else "would be removed; add --delete to remove them"
    out.print(f"{len(found)} files and folders, {total:,} bytes {done}", highlight=False)


def main() -> None:
    """The entry point: what a user got wrong is one message and exit code 2."""
    try:
        app()
    except (ConfigError, ModelStoreError, StorageError, UnknownStepError) as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(USAGE)


def _open(pipeline: Path, overrides: list[str] | None, run_id: str | None = None) -> Session:
    config: PipelineConfig = load_config(pipeline, overrides or ())
    return Session.open(config, pipeline.resolve().parent, run_id=run_id)


def _selection(
    only: list[str] | None, from_: list[str] | None, force: list[str] | None
) -> Selection:
    return Selection(frozenset(only or ()), frozenset(from_ or ()), frozenset(force or ()))
