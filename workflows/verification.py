"""Proof that a pretraining resumes exactly: kill it, let it go on, compare with one left in peace.

Three trainings of the pipeline's first steps: one without trouble; one of which a worker is killed
with SIGKILL at chosen steps; one that goes on twice with another number of workers. The certificate
says what was equal.
"""

import json
import math
import os
import platform
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

from pydantic import ValidationError
from rich.console import Console

from cluster import capacity
from cluster.cache import cache_folder
from cluster.config import GangConfig, RetryConfig
from cluster.interface import Cluster, Metrics, Reporter, TaskFailedError
from trainers import manifest
from trainers.pretrain_config import PretrainConfig
from trainers.pretrain_work import FACTS
from workflows import pretraining
from workflows.artifacts import Attempt
from workflows.config import ConfigError, PipelineConfig
from workflows.execution import StageContext
from workflows.ledger import Position
from workflows.planning import Selection
from workflows.session import Session
from workflows.steps import Step
from workflows.storage import Storage

FOLDER = "verifications"
CERTIFICATE = "certificate.json"
LOSS_TOLERANCE = 1e-5

_WEIGHTS = "model.safetensors"


class HaltedError(RuntimeError):
    """The training was ended on purpose, to go on with another number of workers."""


@dataclass(frozen=True)
class Trouble:
    """Ends a training at some steps, each once. Picklable."""

    storage: Storage
    folder: str
    """Where it is noted which have come."""
    kills: tuple[int, ...] = ()
    """Steps after which one worker is killed."""
    halt: int | None = None
    """Step after which all workers raise."""

    def at(self, step: int) -> None:
        """Let come what is due after `step`."""
        if self.halt is not None and step >= self.halt:
            raise HaltedError(f"halted after step {step}")
        for kill in self.kills:
            if step >= kill and self._is_first(f"kill-{kill}"):
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self, name: str) -> bool:
        try:
            self.storage.create(f"{self.folder}/{name}", b"")
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class _Troubled:
    """A rank's function whose reports meet trouble."""

    function: Callable[[Reporter], None]
    trouble: Trouble

    def __call__(self, reporter: Reporter) -> None:
        self.function(_TroubledReporter(reporter, self.trouble))


@dataclass(frozen=True)
class _TroubledReporter:
    reporter: Reporter
    trouble: Trouble

    def report(self, metrics: Metrics) -> None:
        self.reporter.report(metrics)
        self.trouble.at(int(metrics["optimizer_step"]))

    def is_leaving(self) -> bool:
        return self.reporter.is_leaving()


@dataclass(frozen=True)
class _TroubledCluster:
    """Gangs of a cluster, with trouble."""

    cluster: Cluster
    trouble: Trouble

    def run_gang(self, function: Callable[[Reporter], None], *args: Any, **settings: Any) -> None:
        self.cluster.run_gang(_Troubled(function, self.trouble), *args, **settings)


@dataclass(frozen=True)
class Verification:
    """A pipeline whose pretraining is put to the proof."""

    session: Session
    """Of the shortened pipeline; its tokens are computed."""
    cluster: Cluster
    directory: str
    """In the storage: gets the trainings and the certificate."""
    kills: tuple[int, ...]
    """Steps after which a worker is killed."""

    def certify(self) -> dict[str, Any]:
        """Run the trainings and compare them; the certificate is written to the storage, too."""
        gang = self.session.config.cluster.pretrain
        pretraining = required(self.session.config)
        workers, steps = gang.most_workers, pretraining.total_steps
        straight = self._train("straight", [(workers, None)])
        killed = self._train("killed", [(workers, None)], self.kills)
        other = other_size(gang, pretraining.global_batch_size)
        sizes: list[tuple[int, int | None]] = []
        if other:
            sizes = [(workers, steps // 3), (other, 2 * steps // 3), (workers, None)]
        resized = self._train("resized", sizes) if sizes else None
        certificate = {
            "schema_version": 1,
            "pipeline": self.session.config.name,
            "pretrain_fingerprint": self._step.fingerprint,
            "steps": steps,
            **judged(straight, killed, resized),
            "straight": straight,
            "killed": killed | {"kills_after_steps": list(self.kills)},
            "resized": resized and resized | {"workers": [size for size, _ in sizes]},
            "workers": workers,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("pretune", "torch", "deepspeed", "ray")},
        }
        text = json.dumps(certificate, indent=1)
        self._storage.write(f"{self.directory}/{CERTIFICATE}", text.encode())
        return certificate

    @property
    def _storage(self) -> Storage:
        return self.session.paths.storage

    @property
    def _step(self) -> Step:
        return next(step for step in self.session.steps if step.kind == "pretrain")

    def _train(
        self, name: str, sizes: Sequence[tuple[int, int | None]], kills: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """One training, by gangs of the given sizes, each halted after its step."""
        folder = f"{self.directory}/{name}"
        for number, (workers, halt) in enumerate(sizes):
            trouble = Trouble(self._storage, folder, kills, halt)
            context = self._context(f"{folder}/{number:06d}", workers, trouble)
            try:
                pretraining.run(context)
            except TaskFailedError as error:
                if halt is None or error.error_type != HaltedError.__name__:
                    raise
        facts = json.loads((context.output / FACTS).read_text(encoding="utf-8"))
        return {
            "samples": facts["samples"],
            "samples_digest": facts["samples_digest"],
            "weights_sha256": manifest.digest_of(context.output / _WEIGHTS),
            "losses": [point["loss"] for point in facts["history"]],
        }

    def _context(self, name: str, workers: int, trouble: Trouble) -> StageContext:
        """What the stage is given: a gang of that size, in a folder that no record names."""
        session, storage = self.session, self._storage
        run = session.context(cast("Cluster", _TroubledCluster(self.cluster, trouble)))
        gang = run.execution.pretrain.model_copy(update={"workers": workers})
        execution = run.execution.model_copy(update={"pretrain": gang})
        place = storage.path(name) if storage.is_local else cache_folder() / name
        attempt = Attempt(storage, Position(0, None, 0), name, place)
        attempt.output.mkdir(parents=True)
        attempt.work.mkdir()
        artifacts = session.artifacts
        records = {key: artifacts.find(ref) for key, ref in self._step.inputs.items()}
        found = {key: record for key, record in records.items() if record is not None}
        return StageContext(
            replace(run, execution=execution), self._step, attempt, artifacts, found
        )


def judged(
    straight: Mapping[str, Any], killed: Mapping[str, Any], resized: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What was equal, and whether that is all that must be."""
    found: dict[str, Any] = {
        "killed_weights_are_equal": killed["weights_sha256"] == straight["weights_sha256"],
        "killed_samples_are_equal": killed["samples_digest"] == straight["samples_digest"],
    }
    if resized is not None:
        gap = largest_relative_gap(straight["losses"], resized["losses"])
        found |= {
            "resized_samples_are_equal": resized["samples_digest"] == straight["samples_digest"],
            "resized_largest_relative_loss_gap": gap,
            "resized_losses_agree": gap <= LOSS_TOLERANCE,
            "loss_tolerance": LOSS_TOLERANCE,
        }
    is_passed = all(value for value in found.values() if isinstance(value, bool))
    return {"verdict": "passed" if is_passed else "failed", **found}


def largest_relative_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Between losses of the same steps; infinite where there are more of one, or no numbers."""
    if len(one) != len(other) or not all(map(math.isfinite, (*one, *other))):
        return math.inf
    return max((abs(a - b) / abs(a) for a, b in zip(one, other, strict=True)), default=0.0)


def other_size(gang: GangConfig, global_batch_size: int) -> int | None:
    """A smaller number of workers that can share the global batch; None where there is none."""
    smaller = range(gang.most_workers - 1, 0, -1)
    return next((size for size in smaller if global_batch_size % size == 0), None)


def kill_points(steps: int, count: int, seed: int) -> tuple[int, ...]:
    """Steps after which a worker is killed: at random, none after the last."""
    drawn = random.Random(seed).sample(range(1, steps), k=min(count, steps - 1))
    return tuple(sorted(drawn))


def required(config: PipelineConfig) -> PretrainConfig:
    """The section `pretrain`.

    Raises:
        ConfigError: the pipeline has none.
    """
    if config.pretrain is None:
        raise ConfigError("the pipeline pretrains nothing: its base is there already")
    return config.pretrain


def shortened(config: PipelineConfig, steps: int, kills: int) -> PipelineConfig:
    """The pipeline with a pretraining of so many steps, saved often and tried again patiently.

    Raises:
        ConfigError: its schedule needs more of them.
    """
    whole = required(config)
    pretrain_config = whole.model_copy(
        update={
            "tokens": steps * whole.global_batch_tokens,
            "checkpoint": whole.checkpoint.model_copy(update={"every_steps": max(1, steps // 5)}),
        }
    )
    try:
        PretrainConfig.model_validate(pretrain_config)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--steps {steps} are too few: {message}") from None
    retry = RetryConfig(max_attempts=kills + 2, delay_s=0.0)
    cluster = config.cluster.model_copy(update={"retry": retry})
    return config.model_copy(update={"pretrain": pretrain_config, "cluster": cluster})


def run(session: Session, console: Console, *, kills: int, seed: int) -> dict[str, Any]:
    """Compute the tokens where there are none yet, then certify.

    Raises:
        CapacityError: the cluster can never hold the workers.
    """
    wanted = _ancestors(session.steps, "pretrain")
    result = session.run(console, session.plan(Selection(only=frozenset(wanted))))
    if result.failures:
        raise TaskFailedError("verification", str(result.failures[0].cause))
    from cluster.ray_cluster import connect  # loads Ray

    config = session.config
    points = kill_points(required(config).total_steps, kills, seed)
    with connect(config.cluster) as cluster:
        capacity.check(config.cluster, cluster.capacity(), {})
        directory = f"{FOLDER}/{session.paths.run_id}"
        return Verification(session, cluster, directory, points).certify()


def _ancestors(steps: Sequence[Step], name: str) -> set[str]:
    by_name = {step.name: step for step in steps}
    found: set[str] = set()
    waiting = [other.name for other in by_name[name].inputs.values()]
    while waiting:
        found.add(waiting[-1])
        waiting += [other.name for other in by_name[waiting.pop()].inputs.values()]
    return found
