"""An existing checkpoint or dataset taken in as a step's output, with its digests."""

import json
import shutil
from pathlib import Path
from typing import Any

from trainers import licences
from workflows.artifacts import Artifacts
from workflows.ledger import Claim, Record
from workflows.steps import Step

# What a step's readers open, as globs below its output folder.
_PARTS = {
    "data": ("train.parquet", "validation.parquet", "test.parquet", "labels.json"),
    "corpus": ("train-*.parquet",),
    "tokenizer": ("tokenizer.json",),
    "tokens": ("index.json", "*.bin"),
    "pretrain": ("config.json", "*.safetensors", "tokenizer.json"),
    "base": ("config.json", "*.safetensors", "tokenizer.json"),
    "features": ("features.json",),
    "tune": ("trials.json",),
    "final": (
        "final.json",
        "model/predictions.parquet",
        "model/predictions-constant.parquet",
        "model/config.json",
        "model/*.safetensors",
    ),
}
_LEASE_S = 3600.0


class AdoptionError(ValueError):
    """The folder cannot stand for the step's output; nothing was taken in."""


def adopt(step: Step, source: Path, artifacts: Artifacts, run: str, *, force: bool) -> Record:
    """Copy a folder in as the output of a step that has none yet.

    Args:
        step: whose output it is to be.
        source: the folder; it is left as it is.
        artifacts: take it in.
        run: a name for this act, as in the record.
        force: take it in place of an output that is there.

    Raises:
        AdoptionError: names what is wrong, and the way out.
    """
    _check(step, source)
    known = artifacts.ledger.positions([step])[step.fingerprint]
    position = artifacts.ledger.position(step, known)
    if position.committed and not force:
        raise AdoptionError(
            f"{step.name} has an output already; with --force the new one takes its place, "
            "and what was computed from the old one stays until you run --from"
        )
    if isinstance(position.entry, Claim) and not position.entry.owner.is_known_dead:
        raise AdoptionError(
            f"{position.entry.run} is computing {step.name}; wait for it, or stop it first"
        )
    attempt = artifacts.begin(step, position, run, _LEASE_S)
    if attempt is None:
        raise AdoptionError(f"a run has just begun to compute {step.name}; wait for it")
    try:
        shutil.copytree(source, attempt.output, dirs_exist_ok=True)
        facts: dict[str, Any] = {"adopted_from": str(source.absolute())}
        if step.kind in ("pretrain", "base"):
            facts["licence"] = licences.of(source)
        committed = artifacts.commit(step, attempt, facts, run=run)
    except BaseException:
        artifacts.release(step, attempt)
        raise
    record = committed.entry if committed else None
    if not isinstance(record, Record):
        raise AdoptionError(f"a run took {step.name} over meanwhile; nothing was taken in")
    return record


def _check(step: Step, source: Path) -> None:
    if not source.is_dir():
        raise AdoptionError(f"{source}: no such folder; give the folder that holds the files")
    if step.kind not in _PARTS and step.uses is None:
        raise AdoptionError(
            f"{step.name}: the output of a {step.kind} step cannot come from outside; "
            f"kinds that can are {', '.join(_PARTS)} and your own"
        )
    for part in _PARTS.get(step.kind, ()):
        if not any(source.glob(part)):
            raise AdoptionError(f"{source}: no {part} there; a {step.kind} step's readers open it")
    for path in source.rglob("*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AdoptionError(f"{path}: not JSON: {error}") from error
