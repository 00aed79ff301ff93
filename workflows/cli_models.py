"""The commands `pretune models ...`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workflows import history
from workflows.console import (
    FAILED,
    STORAGE,
    AsJson,
    StorageOption,
    err,
    out,
    print_json,
    table_of,
    usage_error,
)
from workflows.execution import tracking_uri
from workflows.models import ChampionChangedError, ModelStore, ModelStoreError, Version
from workflows.storage import Storage, scheme_of

models = typer.Typer(help="Look at the model store, and move its aliases.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION]")]
Because = Annotated[str, typer.Option("--because", help="Why; it is written down.")]


@models.command("list")
def models_list(storage: StorageOption = STORAGE, as_json: AsJson = False) -> None:
    """List the models, their versions and champions.

    Example: `pretune models list --storage ./pretune-data`
    """
    store = ModelStore(Storage.at(storage))
    rows = []
    for name in store.names():
        champion = store.champion(name)
        facts = store.facts(champion) if champion else None
        metric = facts["task"].get("metric") or facts.get("metric") if facts else None
        rows.append(
            {
                "model": name,
                "versions": len(store.versions(name)),
                "champion": champion.number if champion else None,
                "metric": metric,
                "score": _rounded(facts["scores"].get(metric)) if facts else None,
            }
        )
    if as_json:
        print_json(rows)
    elif rows:
        out.print(table_of(rows))
    else:
        out.print(f"no models in {storage}")


@models.command("show")
def models_show(
    reference: Reference,
    storage: StorageOption = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show one version: scores, files, promotions. Every file is compared with its digest.

    Example: `pretune models show tweets.sentiment@champion`
    """
    store = ModelStore(Storage.at(storage))
    version = store.resolve(reference)
    facts = {
        "model": str(version),
        "folder": str(store.verified(version)),
        **{name: store.facts(version)[name] for name in ("scores", "created_at", "fingerprint")},
        "tags": store.tags(version),
        "files": store.facts(version)["files"],
        "promotions": store.log(version.name),
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name in {"files", "promotions"}:
            out.print(f"{name}:")
            lines = value.items() if isinstance(value, dict) else enumerate(value, start=1)
            for key, line in lines:
                out.print(f"  {key}: {_told(line)}", markup=False, soft_wrap=True)
        else:
            out.print(f"{name}: {_told(value)}", markup=False, soft_wrap=True)


@models.command("diff")
def models_diff(
    one: Annotated[str, typer.Argument(metavar="A")],
    other: Annotated[str, typer.Argument(metavar="B")],
    storage: StorageOption = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show in what two versions differ: task, hyperparameters, scores, files.

    Example: `pretune models diff tweets.sentiment@1 tweets.sentiment@champion`
    """
    store = ModelStore(Storage.at(storage))
    versions = [store.resolve(reference) for reference in (one, other)]
    flat = [_flat(store.facts(version)) for version in versions]
    rows = [
        {"what": name, **{str(v): told.get(name) for v, told in zip(versions, flat, strict=True)}}
        for name in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(name) != flat[1].get(name)
    ]
    if as_json:
        print_json(rows)
    elif rows:
        out.print(table_of(rows))
    else:
        out.print("no difference")


@models.command("verify")
def models_verify(
    reference: Annotated[str | None, typer.Argument(metavar="NAME[@VERSION]")] = None,
    storage: StorageOption = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Read every byte of the store's versions, or of one, and compare it with the manifest.

    Exit code 1 where something is damaged.

    Example: `pretune models verify --storage s3://bucket/prefix`
    """
    store = ModelStore(Storage.at(storage))
    names = store.names() if reference is None else [reference]
    chosen = [v for name in names for v in store.versions(name) or [store.resolve(name)]]
    rows = [{"model": str(version), "damage": store.damage(version)} for version in chosen]
    rows += [
        {"model": name, "damage": damage}
        for name in sorted({version.name for version in chosen})
        if (damage := store.damage_of_log(name))
    ]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            told = row["damage"] or "every byte is what was written"
            out.print(f"{row['model']}: {told}", markup=False, highlight=False, soft_wrap=True)
    if any(row["damage"] for row in rows):
        raise typer.Exit(FAILED)


@models.command("promote")
def models_promote(
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    override: Annotated[
        bool, typer.Option("--override", help="Whatever the gate says; asks for --because.")
    ] = False,
    because: Because = "",
    storage: StorageOption = STORAGE,
) -> None:
    """Make a version the champion if the gate lets it through.

    It is compared with the champion as in a run, on what both said of the same rows; exit code
    1 where that proves nothing. What a run proved and left as the candidate is not judged again
    while the champion is the same.

    Example: `pretune models promote tweets.sentiment@candidate`
    """
    store = ModelStore(Storage.at(storage))
    version = store.resolve(reference)
    champion = store.champion(version.name)
    if version == champion:
        raise usage_error(f"{version} is the champion already")
    if override and not because:
        raise usage_error("--override is written down: say why with --because")
    _require_whole(store, version)
    if override:
        _move(store, version, champion, because, how="override")
        return
    waiting = store.moved(version)
    if version == store.candidate(version.name) and waiting and _is_of(waiting, champion):
        _move(store, version, champion, waiting["reason"], how="approval")
        return
    from workflows import base_judgement, judgement  # load torch
    from workflows.promotion import Keep

    is_base = "objective" in store.facts(version)
    found = (base_judgement if is_base else judgement).again(store, version, champion)
    if isinstance(found.verdict, Keep):
        told = f"{version} is not promoted: {found.verdict.reason}"
        err.print(told, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED)
    _move(store, version, champion, found.verdict.reason, how="gate")


@models.command("rollback")
def models_rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    because: Because,
    to: Annotated[
        int | None, typer.Option("--to", help="Number of the version; else the champion before.")
    ] = None,
    storage: StorageOption = STORAGE,
) -> None:
    """Make an earlier version the champion again, once every byte of it was compared.

    Example: `pretune models rollback tweets.sentiment --because "wrong on irony"`
    """
    store = ModelStore(Storage.at(storage))
    champion = store.resolve(name)
    version = store.before(name) if to is None else store.resolve(f"{name}@{to}")
    if version == champion:
        raise usage_error(f"{version} is the champion already")
    _require_whole(store, version)
    _move(store, version, champion, because, how="rollback")


@models.command("tag")
def models_tag(
    reference: Reference,
    tags: Annotated[list[str], typer.Argument(metavar="KEY=VALUE")],
    storage: StorageOption = STORAGE,
) -> None:
    """Note something about a version; `key=` takes a note back.

    Example: `pretune models tag tweets.sentiment@3 reviewed=yes`
    """
    store = ModelStore(Storage.at(storage))
    parts = [tag.partition("=") for tag in tags]
    wrong = [tag for tag, (key, sign, _) in zip(tags, parts, strict=True) if not key or not sign]
    if wrong:
        raise usage_error(f"{wrong[0]!r} is no tag; write key=value")
    store.tag(store.resolve(reference), {key: value for key, _, value in parts})


@models.command("replay")
def models_replay(
    reference: Reference,
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="STORAGE", help="Make it again, in another storage."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the pipeline file's paths are now.")
    ] = None,
    storage: StorageOption = STORAGE,
) -> None:
    """Print the exact pipeline that made a version; or run it again as far as the model.

    With --into everything is computed anew, from the same data: where they are no more the same,
    nothing is. Exit code 1 where the new weights are not the version's.

    Example: `pretune models replay tweets.sentiment@champion --into ./again`
    """
    from workflows.replay import Origin, Replay, ReplayError

    store = ModelStore(Storage.at(storage))
    origin = Origin.of(store, store.resolve(reference))
    if into is None:
        sys.stdout.write(origin.as_yaml())
        return
    from workflows.cli_run import end_by_failures, run_until_it_ends

    if _place(into) == _place(storage):
        raise usage_error("--into is this storage, where it is made already; give another one")
    try:
        replay = Replay.prepare(origin, folder or Path(origin.folder), into)
    except ReplayError as error:
        raise usage_error(str(error)) from None
    end_by_failures(
        run_until_it_ends(replay.opened, replay.selection, fail_fast=True, as_json=False)
    )
    if not replay.is_equal():
        err.print(f"{origin.version} was made again, with other weights", highlight=False)
        raise typer.Exit(FAILED)
    out.print(f"{origin.version} was made again: the weights are the same", highlight=False)


@models.command("pull")
def models_pull(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    storage: StorageOption = STORAGE,
) -> None:
    """Copy a version to a folder that needs nothing of the store, every byte compared.

    Example: `pretune models pull tweets.sentiment@champion ./sentiment`
    """
    store = ModelStore(Storage.at(storage))
    version = store.resolve(reference)
    store.pull(version, folder)
    out.print(f"{version} is in {folder}", markup=False, highlight=False, soft_wrap=True)


@models.command("sync")
def models_sync(storage: StorageOption = STORAGE) -> None:
    """Write to MLflow what it lacks of the storage's runs and models; nothing is there twice.

    To the server that MLFLOW_TRACKING_URI names; else to the database beside the storage, or, of an
    object store, in this machine's cache. Exit code 2 where it cannot be written.

    Example: `pretune models sync --storage s3://bucket/prefix`
    """
    where = Storage.at(storage)
    if not history.run_ids(where) and not ModelStore(where).names():
        raise usage_error(f"no runs and no models in {storage}; give --storage")
    from workflows import tracking  # loads MLflow

    try:
        written = tracking.sync(tracking_uri(where), where)
    except tracking.MirrorError as error:
        raise usage_error(str(error)) from None
    told = f"new in MLflow at {written.uri}: runs {written.runs}, versions {written.versions}"
    out.print(told, markup=False, highlight=False, soft_wrap=True)


def _move(
    store: ModelStore, version: Version, champion: Version | None, reason: str, *, how: str
) -> None:
    try:
        store.promote(version, expected=champion, reason=reason, run=None, how=how)
    except ChampionChangedError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    told = f"{version} is the champion of {version.name}: {reason}"
    out.print(told, markup=False, highlight=False, soft_wrap=True)


def _is_of(waiting: dict[str, Any], champion: Version | None) -> bool:
    """Whether a candidate was compared with what is the champion now."""
    return bool(waiting["previous"] == (champion.number if champion else None))


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _place(where: str) -> str:
    return where if scheme_of(where) else str(Path(where).resolve())


def _require_whole(store: ModelStore, version: Version) -> None:
    """Refuse what is damaged in the storage itself, whatever copy this machine has of it."""
    damage = store.damage(version)
    if damage:
        raise ModelStoreError(f"{version} is damaged: {damage}")


def _flat(facts: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Values by dotted name; of files their digests, shortened."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if name == "files":
            found |= {f"files.{file}": told["sha256"][:12] for file, told in value.items()}
        elif isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(item)}" for key, item in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)
