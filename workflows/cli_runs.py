"""The verbs about runs that were begun, here or on another cluster."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.kube import is_kube
from cluster.logs import parts_of_trial
from cluster.remote import RemoteRun, RemoteStatus
from workflows import history, submission
from workflows.cli_submit import (
    Address,
    TokenFile,
    follow_or_leave,
    refusals_told,
)
from workflows.console import (
    CONTACT_LOST,
    STORAGE,
    AsJson,
    Quiet,
    StorageOption,
    err,
    out,
    print_json,
    table_of,
    usage_error,
)
from workflows.execution import RunPaths
from workflows.following import OUTCOMES, Follower
from workflows.known_clusters import is_known
from workflows.progress import RunView, clock
from workflows.session import live_view
from workflows.storage import Storage, StorageError
from workflows.streams import DamagedFileError
from workflows.submitting import remote_at, states_at

RunId = Annotated[str | None, typer.Argument(help="A run; the newest where absent.")]

_POLL_S = 1.0
_SHOWN_RUNS = 20
_SAVING_S = 180.0
"""Longer than `cluster.stop_grace_s`, after which a driver ends without a checkpoint."""
_SILENT_S = 3600.0
"""Of a run whose driver was killed no end is told."""


def status(
    run_id: RunId = None,
    storage: StorageOption = STORAGE,
    address: Address = None,
    token_file: TokenFile = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it to its end, with the exit codes of submit.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, from the storage alone; of a submitted one, what its cluster says.

    Example: `pretune status tweets-20261122-143000-1a2b --storage ./pretune-data`
    """
    paths, remote = _found(run_id, storage, address, token_file)
    if watch:
        console = Console(stderr=True) if as_json else out
        raise typer.Exit(_watch(paths, remote, console, address, quiet))
    said = _asked(remote)
    view = history.view(paths)
    if said is None and not view.steps and view.last_event_at is None:
        raise usage_error(f"nothing is known of a run {paths.run_id}")
    if as_json:
        last, outcome = view.last_event_at, view.outcome
        facts = {"run": paths.run_id, "outcome": outcome, "last_event_at": last}
        cluster = {"state": said.state, "message": said.message} if said else None
        print_json({**facts, "cluster": cluster, "steps": _states(view)})
        return
    age = "" if view.last_event_at is None else clock(time.time() - view.last_event_at)
    ended = f", {view.outcome}" if view.outcome else ""
    out.print(f"{paths.run_id}{ended}{age and f', last event {age} ago'}", highlight=False)
    if said is not None:
        line = f"its cluster says: {said.state}: {said.message}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(view.table())


def logs(
    run_id: RunId = None,
    of: Annotated[
        str | None,
        typer.Argument(
            metavar="[STEP|TRIAL]",
            help="A step or a trial; where absent, the driver of a submitted run.",
        ),
    ] = None,
    storage: StorageOption = STORAGE,
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """Print what a step or a trial logged, or what the driver of a submitted run printed.

    Trials have the names that the report and the file trials.json of their search call them.

    Example: `pretune logs tweets-20261122-143000-1a2b pretrain --storage ./pretune-data`
    """
    paths, remote = _found(run_id, storage, address, token_file)
    if of is None:
        if remote is None:
            known = ", ".join(_logs(paths)) or "none"
            raise usage_error(f"name a step; {paths.run_id} has logs of: {known}")
        with refusals_told():
            typer.echo(remote.log(), nl=False)
        return
    by_step = _logs(paths)
    is_found = False
    for name, text in _texts(paths, by_step, of):
        is_found = True
        typer.echo(f"==> {name}", err=True)
        typer.echo(text, nl=False)
    if not is_found:
        known = ", ".join(by_step) or "none"
        raise usage_error(f"no log of {of!r}; {paths.run_id} has logs of: {known}")


def stop(
    run_id: RunId = None,
    storage: StorageOption = STORAGE,
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """Ask a run to end: pretraining saves a checkpoint, claims are released.

    Works from any machine that sees the storage; the run sees it within seconds. Where it is not
    seen from here, or the run has not begun, its cluster ends it: --address.

    Example: `pretune stop tweets-20261122-143000-1a2b --storage ./pretune-data`
    """
    paths, remote = _found(run_id, storage, address, token_file)
    has_begun = history.head(paths.storage, paths.run_id) is not None
    if has_begun:
        paths.ask_to_stop()
    elif remote is None:
        raise usage_error(f"{paths.run_id} has not begun; give the --address it was submitted to")
    ended = history.view(paths, of_driver=True).outcome
    told = f"{paths.run_id} had {ended}" if ended else f"asked {paths.run_id} to end"
    out.print(told, highlight=False)
    if remote is not None and (remote.forgotten is not None or not has_begun):
        if has_begun:
            _wait_for_the_end(paths)  # its cluster, which is its own, holds what it saves
        with refusals_told():
            remote.stop()


def list_runs(
    storage: StorageOption = STORAGE,
    address: Address = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the newest runs of a storage and how they ended; with --address a cluster's, too.

    Example: `pretune list --storage ./pretune-data`
    """
    where = submission.visible(storage)
    rows: dict[str, dict[str, Any]] = {}
    for run in (history.runs(where) if where else [])[-_SHOWN_RUNS:]:
        assert where is not None
        view = history.view(RunPaths(where, run.run_id), of_driver=True)
        done = sum(step.state in ("done", "reused") for step in view.steps.values())
        rows[run.run_id] = {
            "run": run.run_id,
            "pipeline": run.pipeline,
            "started": run.started,
            "outcome": view.outcome or "",
            "steps": f"{done}/{len(view.steps)}",
        }
    if address is not None:
        with refusals_told():
            for run_id, state in states_at(address, token_file).items():
                rows.setdefault(run_id, {"run": run_id})["cluster"] = state
    if as_json:
        print_json(list(rows.values()))
    else:
        out.print(table_of(list(rows.values())))


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B")],
    storage: StorageOption = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show in what two runs of a storage differ: configuration, scores, time.

    Scores on the same test rows are compared row by row, by the paired bootstrap; p is that of no
    gain of B over A. Time of a step that both share is that of the run that computed it.

    Example: `pretune compare tweets-20261122-143000-1a2b tweets-20261123-143000-3c4d`
    """
    from workflows.comparison import compare as compared  # loads torch

    found = compared(Storage.at(storage), run_a, run_b)
    scores = [score.told() for score in found.scores]
    if as_json:
        print_json({"config": found.config, "scores": scores, "seconds": found.seconds})
        return
    changed = [
        {"step": row["step"]}
        | {side: "" if row[side] is None else f"{row[side]:.0f} s" for side in ("a", "b")}
        for row in found.seconds
        if not row["same"]
    ]
    out.print("configuration:" if found.config else "configuration: no difference", style="bold")
    for row in found.config:  # no table: keys and paths are long, and are to be read whole
        line = f"{row['key']}: {row['a']} -> {row['b']}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for title, rows in (("scores", scores), ("time", changed)):
        out.print(f"{title}:" if rows else f"{title}: no difference", style="bold")
        if rows:
            out.print(table_of([_rounded(row) for row in rows]))


def report(
    run_id: RunId = None,
    storage: StorageOption = STORAGE,
    output: Annotated[
        Path | None, typer.Option(help="The file to write; where absent, the run's own report.")
    ] = None,
) -> None:
    """Write a run's report, one HTML file, from the storage alone.

    Every run ends with one; this is for a run that failed, was stopped or still goes on, and for
    models that were promoted or rolled back since.

    Example: `pretune report tweets-20261122-143000-1a2b --output tweets.html`
    """
    from workflows.report import gathering  # loads matplotlib and torch

    where = Storage.at(storage)
    paths = RunPaths(where, _named(where, run_id))
    try:
        page = gathering.of_run(where, paths.run_id).encode()
        if output is None:
            where.write(paths.report, page)
        else:
            output.write_bytes(page)
    except (DamagedFileError, OSError) as error:
        raise usage_error(str(error)) from None
    place = output or where.url(paths.report)
    out.print(f"{place}: {len(page):,} bytes", highlight=False, soft_wrap=True)


def _named(where: Storage, run_id: str | None) -> str:
    """A run of a storage, the newest where none is named."""
    runs = history.run_ids(where)
    if not runs:
        raise usage_error(f"no runs in {where.root}; give --storage")
    if run_id is not None and run_id not in runs:
        raise usage_error(f"no run {run_id!r} in {where.root}; the newest is {runs[-1]}")
    return run_id or runs[-1]


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()
    }


def _found(
    run_id: str | None, storage: str, address: str | None, token_file: Path | None
) -> tuple[RunPaths, RemoteRun | None]:
    """A run of a storage, the newest where none is named, and what its cluster can be asked."""
    where = Storage.at(storage)
    if run_id is None or address is None:
        run_id = _named(where, run_id)
    paths = RunPaths(where, run_id)
    known = address or submission.address_of(paths)
    if known is None:
        return paths, None
    if not address and not is_kube(known) and not is_known(known):
        # Whoever writes the storage could have the token sent to himself.
        line = f"it was sent to {known}, which is not asked until you give --address {known} once"
        err.print(line, markup=False, highlight=False, soft_wrap=True)
        return paths, None
    with refusals_told():
        return paths, remote_at(known, run_id, token_file)


def _asked(remote: RemoteRun | None) -> RemoteStatus | None:
    """What the cluster says; one that is gone says nothing, and the storage tells enough."""
    if remote is None:
        return None
    try:
        return remote.status()
    except (ConnectionError, ValueError) as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return None


def _wait_for_the_end(paths: RunPaths) -> None:
    until = time.monotonic() + _SAVING_S
    while time.monotonic() < until:
        if history.view(paths, of_driver=True).outcome is not None:
            return
        time.sleep(_POLL_S)


def _watch(
    paths: RunPaths, remote: RemoteRun | None, console: Console, address: str | None, quiet: bool
) -> int:
    where = f" --address {address}" if address else ""
    how = f"pretune status {paths.run_id} --watch --storage {paths.storage.root}{where}"
    if remote is not None:
        seen = paths if submission.visible(paths.storage.root) else None
        return follow_or_leave(Follower(remote, seen, console, is_quiet=quiet), how)
    found = history.head(paths.storage, paths.run_id)
    shown = Console(quiet=True) if quiet else console
    with live_view(shown, paths, found.steps if found else ()) as live:
        while live.view.outcome is None:
            with contextlib.suppress(StorageError):  # it is looked at again
                live.tick()
            if time.time() - (live.view.last_event_at or time.time()) > _SILENT_S:
                break
            time.sleep(_POLL_S)
    if live.view.outcome is None:
        console.print("nothing was heard of it for an hour; its driver may have been killed")
        return CONTACT_LOST
    for line in live.view.said:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return OUTCOMES[live.view.outcome]


def _logs(paths: RunPaths) -> dict[str, list[str]]:
    """Names of the logs by step: its own, and those of its workers, `[NODE/]STEP.*.log`."""
    head = history.head(paths.storage, paths.run_id)
    names = sorted(paths.storage.find(paths.logs))
    found = {
        step: [name for name in names if PurePath(name).name.startswith(f"{step}.")]
        for step in (head.steps if head else ())
    }
    return {step: logs for step, logs in found.items() if logs}


def _texts(paths: RunPaths, by_step: Mapping[str, list[str]], of: str) -> Iterator[tuple[str, str]]:
    """Names of logs and what they say of a step, or else of a trial in any of them."""
    for name in by_step.get(of) or chain(*by_step.values()):
        text = paths.storage.read(f"{paths.logs}/{name}").decode(errors="replace")
        parts = [text] if of in by_step else list(parts_of_trial(text, of))
        if parts:
            yield name, "".join(parts)


def _states(view: RunView) -> dict[str, dict[str, Any]]:
    return {
        name: {"state": step.state, "elapsed_s": step.elapsed_s, **step.facts}
        for name, step in view.steps.items()
    }
