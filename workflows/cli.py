"""The command `pretune`. Loads no heavy library until a pipeline really runs."""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.capacity import CapacityError
from cluster.interface import UnreachableError
from workflows import session
from workflows.config import ConfigError, PipelineConfig, load_config
from workflows.execution import RunPaths
from workflows.models import ModelStore, ModelStoreError
from workflows.progress import RunView
from workflows.runner import State
from workflows.session import Session

FAILED, USAGE, STOPPED = 1, 2, 4

_STORAGE = "./pretune-data"
_PLANS = {State.REUSED: "REUSE", State.WAITING: "RUN", State.NOT_NEEDED: "NOT NEEDED"}

app = typer.Typer(
    help="Pretrain once, tune for everything, promote what is proved.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
models = typer.Typer(help="Look at the model store.", no_args_is_help=True)
app.add_typer(models, name="models")

out = Console()
err = Console(stderr=True)

PipelineFile = Annotated[Path, typer.Argument(help="The pipeline file.", metavar="PIPELINE.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one value.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
StorageOption = Annotated[Path, typer.Option("--storage", help="The storage folder.")]


@app.command()
def validate(pipeline: PipelineFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a pipeline file and the data it names, without running anything.

    Example: `pretune validate examples/demo.yaml`
    """
    opened = _open(pipeline, overrides)
    if as_json:
        _print_json({"valid": True, "steps": len(opened.steps), "name": opened.config.name})
    else:
        out.print(f"{pipeline}: fine, {len(opened.steps)} steps")


@app.command()
def plan(pipeline: PipelineFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show which steps would run and which results are reused.

    Example: `pretune plan examples/demo.yaml --set pretrain.seed=1`
    """
    opened = _open(pipeline, overrides)
    states = opened.plan()
    rows = [
        {
            "step": step.name,
            "plan": _PLANS[states[step.name]],
            "fingerprint": step.fingerprint,
        }
        for step in opened.steps
    ]
    if as_json:
        _print_json(rows)
    else:
        out.print(_table(rows, short=("fingerprint",)))


@app.command()
def run(pipeline: PipelineFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run a pipeline; what is done already is reused, what was interrupted goes on.

    Example: `pretune run examples/demo.yaml`
    """
    opened = _open(pipeline, overrides)
    console = Console(stderr=True) if as_json else out
    # A scheduler's notice ends a run as Ctrl-C does: cleanly.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = opened.run(console)
    except (CapacityError, UnreachableError) as error:
        raise _usage_error(str(error)) from None
    except KeyboardInterrupt:
        err.print("stopped; what was finished is kept, run the same command to go on")
        raise typer.Exit(STOPPED) from None
    summary = opened.summary(result)
    if as_json:
        _print_json(summary)
    else:
        session.print_summary(out, summary)
    for failure in result.failures:
        err.print(f"[red]failed:[/red] {failure.step}: ", end="")
        err.print(failure.cause, markup=False, soft_wrap=True)
        err.print(f"        log: {failure.log}", markup=False, soft_wrap=True)
    if result.failures:
        is_usage = all(failure.is_input_error for failure in result.failures)
        raise typer.Exit(USAGE if is_usage else FAILED)


@app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(help="A run; the newest where absent.")] = None,
    storage: StorageOption = Path(_STORAGE),
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, from the storage alone.

    Example: `pretune status tweets-20261122-143000-1a2b --storage ./pretune-data`
    """
    runs = session.run_ids(storage)
    if not runs:
        raise _usage_error(f"no runs in {storage}; give --storage")
    chosen = run_id or runs[-1]
    if chosen not in runs:
        raise _usage_error(f"no run {chosen!r} in {storage}; the newest is {runs[-1]}")
    view = session.view(RunPaths(storage, chosen))
    if as_json:
        _print_json({"run": chosen, "steps": _states(view)})
    else:
        out.print(chosen)
        out.print(view.table())


@models.command("list")
def models_list(storage: StorageOption = Path(_STORAGE), as_json: AsJson = False) -> None:
    """List the models, their versions and champions.

    Example: `pretune models list --storage ./pretune-data`
    """
    store = ModelStore(storage / "models")
    rows = []
    for name in store.names():
        champion = store.champion(name)
        scores = store.facts(champion)["scores"] if champion else {}
        rows.append(
            {
                "model": name,
                "versions": len(store.versions(name)),
                "champion": champion.number if champion else None,
                **{metric: round(value, 4) for metric, value in scores.items()},
            }
        )
    if as_json:
        _print_json(rows)
    elif rows:
        out.print(_table(rows))
    else:
        out.print(f"no models in {storage}")


@models.command("show")
def models_show(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    storage: StorageOption = Path(_STORAGE),
    as_json: AsJson = False,
) -> None:
    """Show one version: scores, files, promotions. Every file is compared with its digest.

    Example: `pretune models show tweets.sentiment@champion`
    """
    store = ModelStore(storage / "models")
    version = store.resolve(reference)
    facts = {
        "model": str(version),
        "folder": str(store.verified(version)),
        **{name: store.facts(version)[name] for name in ("scores", "created_at", "fingerprint")},
        "files": store.facts(version)["files"],
        "promotions": store.log(version.name),
    }
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        if name in {"files", "promotions"}:
            out.print(f"{name}:")
            lines = value.items() if isinstance(value, dict) else enumerate(value, start=1)
            for key, line in lines:
                out.print(f"  {key}: {_told(line)}", markup=False, soft_wrap=True)
        else:
            out.print(f"{name}: {_told(value)}", markup=False, soft_wrap=True)


@app.command()
def predict(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    texts: Annotated[list[str], typer.Argument(help="Texts to label.")],
    storage: StorageOption = Path(_STORAGE),
    as_json: AsJson = False,
) -> None:
    """Label texts with a model of the store.

    Example: `pretune predict tweets.sentiment@champion "what a lovely flight"`
    """
    store = ModelStore(storage / "models")
    version = store.resolve(reference)
    folder = store.verified(version)
    task = store.facts(version)["task"]
    rows = session.predict(folder, task, texts)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        out.print(_prediction(row), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point: what a user got wrong is one message and exit code 2."""
    try:
        app()
    except (ConfigError, ModelStoreError) as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(USAGE)


def _open(pipeline: Path, overrides: list[str] | None) -> Session:
    config: PipelineConfig = load_config(pipeline, overrides or ())
    return Session.open(config, pipeline.resolve().parent)


def _usage_error(message: str) -> typer.Exit:
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(USAGE)


def _states(view: RunView) -> dict[str, dict[str, Any]]:
    return {
        name: {"state": step.state, "elapsed_s": step.elapsed_s, **step.facts}
        for name, step in view.steps.items()
    }


def _prediction(row: dict[str, Any]) -> str:
    if isinstance(row["label"], list):
        pairs = zip(row["text"], row["label"], strict=True)
        return " ".join(word if label == "O" else f"{word}/{label}" for word, label in pairs)
    return f"{row['label']} {row['score']:.3f}  {row['text']}"


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(item)}" for key, item in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(rows: list[dict[str, Any]], short: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        cells = [str("" if row.get(name) is None else row[name]) for name in names]
        table.add_row(*(c[:12] if n in short else c for n, c in zip(names, cells, strict=True)))
    return table


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")
