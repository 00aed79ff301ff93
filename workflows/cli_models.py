"""The commands about models: `pretune models ...` and `pretune predict`."""

from typing import Annotated, Any

import typer

from workflows import session
from workflows.console import STORAGE, AsJson, StorageOption, out, print_json, table_of
from workflows.models import ModelStore
from workflows.storage import Storage

models = typer.Typer(help="Look at the model store.", no_args_is_help=True)


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
        metric = facts["task"]["metric"] if facts else None
        rows.append(
            {
                "model": name,
                "versions": len(store.versions(name)),
                "champion": champion.number if champion else None,
                "metric": metric,
                "score": round(facts["scores"][metric], 4) if facts else None,
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
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
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


def predict(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    texts: Annotated[list[str], typer.Argument(help="Texts to label; or pairs of them.")],
    storage: StorageOption = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Label texts with a model of the store.

    Example: `pretune predict tweets.sentiment@champion "what a lovely flight"`
    """
    store = ModelStore(Storage.at(storage))
    version = store.resolve(reference)
    folder = store.verified(version)
    task = store.facts(version)["task"]
    rows = session.predict(folder, task, texts)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(_prediction(row), markup=False, highlight=False, soft_wrap=True)


def _prediction(row: dict[str, Any]) -> str:
    text = " | ".join(filter(None, [str(row["text"]), row.get("text_pair")]))
    if row["score"] is None:  # the label is a number, or an answer
        label = row["label"]
        return f"{label:.4f}  {text}" if isinstance(label, float) else f"{label}  <- {text}"
    if isinstance(row["text"], list):
        pairs = zip(row["text"], row["label"], strict=True)
        return " ".join(word if label == "O" else f"{word}/{label}" for word, label in pairs)
    if isinstance(row["label"], list):
        scored = zip(row["label"], row["score"], strict=True)
        return f"{', '.join(f'{name} {score:.3f}' for name, score in scored) or '-'}  {text}"
    return f"{row['label']} {row['score']:.3f}  {text}"


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(item)}" for key, item in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)
