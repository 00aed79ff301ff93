"""A pipeline as an overlay of `k8s/`: groups of pods that hold what its section `cluster` asks for.

Pure: from a configuration to files. What is the same for all pipelines stands in `k8s/` itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.config import GangConfig, WorkerConfig
from trainers import files
from workflows.config import ConfigError, PipelineConfig
from workflows.needs import needs
from workflows.outside import OutsideData
from workflows.pipeline import build_steps
from workflows.submission import named_files

PIPELINE = "pipeline.yaml"
_GIB = 1 << 30

_PROCESS_BYTES = 4 * _GIB
"""Of a worker beside its model's states: Python, torch, CUDA's host side, batches that wait."""
_SLACK = 1.1
_OBJECT_STORE_BYTES = {False: _GIB, True: 16 * _GIB}
"""By whether the pod has GPUs; it counts against the pod's memory."""

_GROUPS = ("pretrain", "trials")
"""As `k8s/base` has them, in this order."""
_CLUSTER = "/spec/jobTemplate/rayClusterSpec/workerGroupSpecs"
_GPU = "nvidia.com/gpu"
_GROWS = "autoscale-trials"
_PLACEHOLDER = "registry.example.org/pretune"
"""The image's name in components/image."""


@dataclass(frozen=True)
class Place:
    """What a pipeline does not say of where it runs."""

    base: str
    """Path of `k8s`, from the overlay."""
    gpus_per_pod: int
    """Of a node, that one pod has all of."""
    trial_pods: int
    schedule: str | None = None
    timezone: str | None = None
    queue: str | None = None
    image: str | None = None
    """With its tag."""
    storage: str | None = None
    components: Sequence[str] = ()


@dataclass(frozen=True)
class Group:
    """Pods that are alike."""

    pods: int
    """The most there are."""
    least_pods: int
    begin_pods: int
    cpus: int
    gpus: int
    memory_gib: int
    object_store_bytes: int


def overlay(config: PipelineConfig, text: str, place: Place) -> dict[str, str]:
    """The files of an overlay, by name.

    Args:
        config: of the pipeline.
        text: its file, which the pods get as it is.
        place: the rest.

    Raises:
        ConfigError: what the file names would not be there, or workers fit no pod.
    """
    _check_files(config)
    groups = {
        "pretrain": None if config.base else gang(config, place.gpus_per_pod),
        "trials": trials(config, place),
    }
    image, _, tag = (place.image or "").rpartition(":")
    if place.image and (not image or "/" in tag):
        raise ConfigError(f"--image {place.image}: expected NAME:TAG; a tag that moves is none")
    patches = [{"target": _of("RayCronJob"), "patch": _yaml(list(_operations(groups)))}]
    if place.queue:
        labels = {"kueue.x-k8s.io/queue-name": place.queue}
        patches.append({"patch": _yaml(_document("RayCronJob", "ray.io/v1", labels))})
    patches += [
        {"target": _of(kind), "patch": _yaml([_replace(f"/spec/{key}", value)])}
        for kind in ("RayCronJob", "CronJob")
        for key, value in (("schedule", place.schedule), ("timeZone", place.timezone))
        if value
    ]
    content: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{place.base}/base"],
        "components": [f"{place.base}/components/{name}" for name in (*place.components, "image")],
        "configMapGenerator": [_config_map("pipeline", {"files": [PIPELINE]}, "replace")],
        "patches": patches,
    }
    if place.storage:
        literals = {"literals": [f"PRETUNE_STORAGE={place.storage}"]}
        content["configMapGenerator"].append(_config_map("settings", literals, "merge"))
    if place.image:
        content["images"] = [{"name": _PLACEHOLDER, "newName": image, "newTag": tag}]
    head = (
        f"# Made by `pretune k8s render` of {config.name}; make it anew when `cluster` changes.\n"
    )
    return {"kustomization.yaml": head + _yaml(content), PIPELINE: text}


def gang(config: PipelineConfig, gpus_per_pod: int) -> Group:
    """The pods of the gang: all workers of a node in one pod, without GPUs one worker a pod."""
    worker = config.cluster.pretrain
    return _group(
        worker,
        worker.most_workers,
        worker.least_workers,
        gpus_per_pod,
        _worker_bytes(config, worker),
        "cluster.pretrain",
    )


def trials(config: PipelineConfig, place: Place) -> Group:
    """The pods of the searches: each holds as many trials as a node has GPUs for."""
    trial = config.cluster.trials
    at_once = _per_pod(trial, place.gpus_per_pod, "cluster.trials") * place.trial_pods
    count = max(at_once, trial.workers)
    each = _worker_bytes(config, trial)
    group = _group(trial, count, count, place.gpus_per_pod, each, "cluster.trials")
    # The user's own steps run where there is room: here.
    own = [step.resources for step in config.steps.values()]
    group = replace(
        group,
        cpus=max([group.cpus, *(step.cpus for step in own)]),
        gpus=max([group.gpus, *(math.ceil(step.gpus) for step in own)]),
    )
    return replace(group, least_pods=0, begin_pods=0) if _GROWS in place.components else group


def _group(
    worker: WorkerConfig, most: int, least: int, gpus_per_pod: int, each: float, name: str
) -> Group:
    per_pod = min(_per_pod(worker, gpus_per_pod, name), most)
    pods = math.ceil(most / per_pod)
    store = _OBJECT_STORE_BYTES[worker.gpus > 0]
    return Group(
        pods=pods,
        least_pods=math.ceil(least / per_pod),
        begin_pods=pods,
        cpus=per_pod * worker.cpus,
        gpus=math.ceil(per_pod * worker.gpus),
        memory_gib=math.ceil((per_pod * each * _SLACK + store) / _GIB),
        object_store_bytes=store,
    )


def _per_pod(worker: WorkerConfig, gpus_per_pod: int, name: str) -> int:
    """Workers of one pod."""
    if not worker.gpus:
        return 1
    found = int(gpus_per_pod / worker.gpus)
    if not found:
        raise ConfigError(
            f"{name}.gpus: {worker.gpus:g} for one worker, and --gpus-per-pod is {gpus_per_pod}; "
            "a worker is in one pod"
        )
    return found


def _worker_bytes(config: PipelineConfig, worker: WorkerConfig) -> float:
    """Memory of a worker's process on its host.

    With a GPU what is offloaded from it, by ZeRO's plan; without one the states of the model, twice
    for what is computed with them. Of a base that is not made here nothing is known.
    """
    if config.pretraining is None or not isinstance(worker, GangConfig):
        return _PROCESS_BYTES
    nothing = OutsideData(
        corpus={},
        sources=tuple("" for _ in config.pretraining.corpus.sources),
        tokenizer={},
        model={},
        base=None,
        tasks={name: {} for name in config.tasks},
        custom={name: {} for name in config.steps},
    )
    step = next(step for step in build_steps(config, nothing) if step.kind == "pretrain")
    vocab_size = config.pretraining.tokenizer.vocab_size
    plan = needs(step.kind, step.spec, config.cluster, vocab_size=vocab_size)
    # With the fewest workers each holds most.
    states = plan.get("most_memory_per_rank_bytes", plan.get("memory_per_rank_bytes", 0))
    host = plan.get("host_memory_per_rank_bytes", 0)
    return _PROCESS_BYTES + (float(host) if worker.gpus else 2 * float(states))


def _check_files(config: PipelineConfig) -> None:
    for key, path in named_files(config):
        if not files.scheme_of(path) and not Path(path).is_absolute():
            raise ConfigError(
                f"{key}: {path} is relative to the pipeline file, which pods get alone; give the "
                "absolute path of a file in the image or on a volume, or a URL"
            )


def _operations(groups: Mapping[str, Group | None]) -> Sequence[dict[str, Any]]:
    """JSON patches; the last group first, so that none moves before its turn."""
    found: list[dict[str, Any]] = []
    for index, name in reversed(list(enumerate(_GROUPS))):
        place, group = f"{_CLUSTER}/{index}", groups[name]
        found.append({"op": "test", "path": f"{place}/groupName", "value": name})
        if group is None:
            found.append({"op": "remove", "path": place})
            continue
        resources: dict[str, Any] = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
        if group.gpus:
            resources[_GPU] = str(group.gpus)
            toleration = {"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}
            path = f"{place}/template/spec/tolerations/-"
            found.append({"op": "add", "path": path, "value": toleration})
        found += [
            _replace(f"{place}/replicas", group.begin_pods),
            _replace(f"{place}/minReplicas", group.least_pods),
            _replace(f"{place}/maxReplicas", group.pods),
            # Ray takes the limits for what it has, the scheduler the requests.
            _replace(
                f"{place}/template/spec/containers/0/resources",
                {"requests": resources, "limits": dict(resources)},
            ),
            _replace(f"{place}/rayStartParams/object-store-memory", str(group.object_store_bytes)),
        ]
    return found


def _replace(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


def _of(kind: str) -> dict[str, str]:
    return {"kind": kind, "name": "pipeline"}


def _document(kind: str, version: str, labels: Mapping[str, str]) -> dict[str, Any]:
    metadata = {"name": "pipeline", "labels": dict(labels)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _config_map(name: str, content: Mapping[str, Any], behavior: str) -> dict[str, Any]:
    return {"name": name, "namespace": "pretune", "behavior": behavior, **content}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=100)
