"""Steps of a user's own for the tests, and graphs of them."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig, WorkerConfig
from cluster.interface import Cluster
from workflows.custom import CustomStep
from workflows.execution import RunContext, RunPaths
from workflows.models import ModelStore
from workflows.pipeline import CustomSpec
from workflows.steps import CUSTOM, Step
from workflows.storage import Storage

BASE = Path(__file__).parent


def write(step: CustomStep) -> dict[str, Any]:
    """Writes what it was told, and what its inputs wrote."""
    below = "".join((folder / "out.txt").read_text() for folder in step.inputs.values())
    text = f"{step.spec.get('text', '')}({below})"
    (step.output / "out.txt").write_text(text)
    return {"length": len(text)}


def publish(step: CustomStep) -> dict[str, Any]:
    """Adds a model to the store and makes it the champion."""
    store = ModelStore(Storage.at(step.spec["storage"]))
    (source,) = step.inputs.values()
    champion = store.champion("own.model")
    version = store.add(
        "own.model", source, fingerprint="f", attempt=source.parent.name, task={}, scores={}
    )
    store.promote(version, expected=champion, reason="better", run="run")
    return {"model": str(version)}


def nothing(step: CustomStep) -> None:
    """Does nothing."""


def fail(step: CustomStep) -> None:
    """Raises."""
    raise KeyError("the step's own error")


def hang(step: CustomStep) -> None:
    """Never ends."""
    while True:
        time.sleep(0.05)


def wait_for_file(step: CustomStep) -> None:
    """Ends when a file appears."""
    Path(step.spec["begun"]).touch()
    while not Path(step.spec["path"]).exists():
        time.sleep(0.05)


def die_once(step: CustomStep) -> None:
    """Kills its process, the first time."""
    marker = Path(step.spec["path"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def full_disk(step: CustomStep) -> None:
    """Writes more than fits."""
    with (step.output / "large.bin").open("wb") as file:
        for _ in range(1000):
            file.write(bytes(1 << 20))


def lambda_result(step: CustomStep) -> dict[str, Any]:
    """Returns what no record can hold."""
    return {"function": nothing}


def own_step(
    name: str,
    *inputs: Step,
    function: str = "write",
    version: int = 1,
    resources: WorkerConfig | None = None,
    **spec: Any,
) -> Step:
    """A step that calls a function of this module."""
    return Step(
        name=name,
        kind=CUSTOM,
        version=version,
        spec=CustomSpec(uses=f"own_steps:{function}", files={}, spec={"text": name} | spec),
        inputs={step.name: step.ref for step in inputs},
        resources=resources,
    )


def diamond() -> list[Step]:
    """One step, two that read it, one that reads both."""
    top = own_step("top")
    left, right = own_step("left", top), own_step("right", top)
    return [top, left, right, own_step("bottom", left, right)]


def context(where: Storage, cluster: Cluster, run_id: str = "run", **settings: Any) -> RunContext:
    """What the steps of a run share."""
    execution = ClusterConfig.model_validate({"retry": {"delay_s": 0.0}} | settings)
    return RunContext(cluster, execution, RunPaths(where, run_id), BASE, searches=())
