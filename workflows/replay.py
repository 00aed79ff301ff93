"""The exact pipeline that a version of the store came from, and making it again."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainers import manifest
from workflows import final
from workflows.config import BASE, load_config
from workflows.model_card import LINEAGE, PIPELINE
from workflows.models import ModelStore, ModelStoreError, Version
from workflows.planning import Selection
from workflows.session import Session
from workflows.steps import Step

_WEIGHTS = "model.safetensors"


class ReplayError(ValueError):
    """What a version came from is no more."""


@dataclass(frozen=True)
class Origin:
    """What made a version."""

    version: Version
    pipeline: str
    """The pipeline file's content, defaults included."""
    folder: str
    """Of the pipeline file: its paths are relative to it."""
    commit: str | None
    """Of the repository that folder was in, `-dirty` where it had changes; None outside of one."""
    run: str
    outside: Mapping[str, str]
    """SHA-256 of all data from outside, by the path where they were."""
    fingerprint: str
    """Of the training."""
    weights: str
    """SHA-256 of the model's weights."""

    @classmethod
    def of(cls, store: ModelStore, version: Version) -> "Origin":
        """As the version itself tells it.

        Raises:
            ModelStoreError: it does not, or is damaged.
        """
        facts = store.facts(version)
        if not {LINEAGE, PIPELINE, _WEIGHTS} <= facts["files"].keys():
            raise ModelStoreError(f"{version} does not say which pipeline made it")
        lineage = json.loads(store.read(version, LINEAGE))
        pipeline = store.read(version, PIPELINE).decode()
        if lineage["base_model"]:  # the file may name an alias, which is another version by now
            data = yaml.safe_load(pipeline)
            data["base"]["store"] = lineage["base_model"]
            pipeline = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        return cls(
            version,
            pipeline,
            lineage["folder"],
            lineage["commit"],
            lineage["run"],
            {path: digest for step in lineage["steps"] for path, digest in step["outside"].items()},
            facts["fingerprint"],
            facts["files"][_WEIGHTS]["sha256"],
        )

    def as_yaml(self) -> str:
        """The pipeline file, behind comments that say what else it takes."""
        told = [f"{self.version}, made by the run {self.run}", f"paths are below {self.folder}"]
        if self.commit:
            told.append(f"which was at commit {self.commit}")
        told += [f"sha256 {digest}  {path}" for path, digest in sorted(self.outside.items())]
        return "".join(f"# {line}\n" for line in told) + self.pipeline


@dataclass(frozen=True)
class Replay:
    """A pipeline opened to make a version again."""

    origin: Origin
    opened: Session
    step: Step
    """That trains the model."""

    @classmethod
    def prepare(cls, origin: Origin, folder: Path, storage: str) -> "Replay":
        """Open the pipeline with another storage; nothing is written.

        Raises:
            ConfigError: the files it names are no more.
            ReplayError: they have other content, or this Pretune makes something else of them.
        """
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, PIPELINE)
            path.write_text(origin.pipeline, encoding="utf-8")
            config = load_config(path, [f"storage={json.dumps(storage)}"])
        if config.base is not None and config.base.store is not None:
            raise ReplayError(
                f"{origin.version} cannot be made again in another storage: its base is "
                f"{config.base.store}, a model of this one"
            )
        opened = Session.open(config, folder)
        task = origin.version.name.partition(".")[2]
        name = "pretrain" if task == BASE else f"{task}.final"
        step = next(step for step in opened.steps if step.name == name)
        if step.fingerprint != origin.fingerprint:
            raise ReplayError(f"{origin.version} cannot be made again: {_why(origin, opened)}")
        if opened.artifacts.find(step) is not None:
            raise ReplayError(f"{storage} has that training already; give another storage")
        return cls(origin, opened, step)

    @property
    def selection(self) -> Selection:
        """The steps that it takes."""
        steps = {step.name: step for step in self.opened.steps}
        found, waiting = set[str](), [self.step.name]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [source.name for source in steps[name].inputs.values()]
        return Selection(only=frozenset(found))

    def is_equal(self) -> bool:
        """Whether the weights are the same to the last bit, once the steps have run."""
        artifacts = self.opened.artifacts
        record = artifacts.find(self.step)
        assert record is not None, "the steps have run"
        output = artifacts.output(record)
        folder = output if self.step.kind == "pretrain" else output / final.MODEL
        return manifest.digest_of(folder / _WEIGHTS) == self.origin.weights


def _why(origin: Origin, opened: Session) -> str:
    now: dict[str, Any] = {}
    for step in opened.steps:
        now |= step.outside
    digests = set(now.values())
    gone = sorted(path for path, digest in origin.outside.items() if digest not in digests)
    if gone:
        return f"{', '.join(gone)}: not what it was, or not there"
    return "this version of Pretune makes another training of the same pipeline"
