"""A step and its identity: what is computed, never where. Pure data."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from pydantic import BaseModel

from cluster.config import WorkerConfig
from trainers.config import WHERE, Schema

CUSTOM = "custom"
"""The kind of the user's own steps."""


PROMOTING = frozenset({"promote", "promote_base"})
"""Kinds that judge a model and add it to the store."""

FOLLOWING = frozenset({"branch"})
"""Kinds that begin when their inputs do, and read what those leave on the way."""

SUMMARIES = ("track", "report")
"""Kinds that tell of all other steps, of those that failed, too."""


class Identified(Protocol):
    """What it takes to find a step's artifact."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def kind(self) -> str:
        """Which stage computes it."""

    @property
    def fingerprint(self) -> str:
        """Its identity."""


@dataclass(frozen=True)
class StepRef:
    """A step as others see it: its name and identity, without its own inputs.

    Steps refer to each other by these, so that a step stays small however long the chain before it.
    """

    name: str
    kind: str
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of work of a pipeline."""

    name: str
    """Unique in its pipeline, for people; no part of the identity."""

    kind: str
    """Which stage computes it."""

    version: int
    """Of that stage's meaning; raised when its output would differ for the same spec."""

    spec: Schema
    """All that the stage may know of the pipeline file."""

    inputs: Mapping[str, StepRef] = field(default_factory=dict)
    """Steps whose outputs it reads, by the name the stage knows them by."""

    outside: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of files it reads from outside, by the path where they are now."""

    runs_on_failure: bool = False
    """Whether it makes do with those inputs that succeeded; then it is not kept."""

    resources: WorkerConfig | None = None
    """What its process is given, where it computes by itself; no part of the identity."""

    @property
    def uses(self) -> str | None:
        """The function of a step of the user's own, as `package.module:function`."""
        return getattr(self.spec, "uses", None) if self.kind == CUSTOM else None

    @cached_property
    def ref(self) -> StepRef:
        """This step for those that read its output."""
        return StepRef(self.name, self.kind, self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over kind, version, spec, fingerprints of inputs and digests of outside data."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint is made from."""
        return {
            "kind": self.kind,
            "version": self.version,
            "spec": self.spec,
            "inputs": {name: step.fingerprint for name, step in self.inputs.items()},
            "outside": sorted(self.outside.values()),
        }


def canonical(value: Any) -> str:
    """Canonical JSON: the same value always gives the same text.

    Raises:
        TypeError: a value whose text might differ between runs or machines.
        ValueError: a number that is not finite.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def plain(value: Any) -> Any:
    """The identity of a value in JSON's types; fields marked `WHERE` are left out."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{value} cannot be part of an identity")
            return value
        case BaseModel():
            return {
                name: plain(getattr(value, name))
                for name, info in type(value).model_fields.items()
                if WHERE not in info.metadata
            }
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise TypeError("only text can be a key in an identity")
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be part of an identity: {value!r}")
