"""What a step will need and how much it will do, known before anything runs. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cluster.config import ClusterConfig, GangConfig, TrialConfig, WorkerConfig
from trainers.config import Schema
from trainers.pretrain_config import Precision, PretrainConfig, ZeroConfig
from trainers.sizes import (
    MemoryEstimate,
    NetworkSize,
    memory_per_rank,
    network_size,
    what_would_fit,
)
from workflows.pipeline import FinalSpec, PretrainSpec, TokensSpec, TuneSpec

Needs = dict[str, int | float | str]
"""Facts by name, for machines; `describe` is for people. What is not known is left out."""

_THOUSANDS = ("", "K", "M", "B", "T")
_BYTES = ("B", "kB", "MB", "GB", "TB")


def needs(kind: str, spec: Schema, execution: ClusterConfig, *, vocab_size: int | None) -> Needs:
    """What a step of this kind needs; empty where there is nothing to tell.

    `cpus` and `gpus` are of one worker, trial or training; of trials and trainings with several
    `ranks`, of one of these. `trials`, `max_epochs` (of one trial) and `trainings` are the most
    there can be: a search may stop trials early and finish fewer than `final.top`.
    `memory_per_rank_bytes` is of the model states alone. Of a gang whose size may change, `workers`
    is the most and `memory_per_rank_bytes` is with so many.

    Args:
        kind: which stage computes the step.
        spec: of the step.
        execution: where it runs.
        vocab_size: tokens of the tokenizer; None where only the tokenizer's folder tells. One
            trained on little text learns fewer than it was asked for.
    """
    match kind:
        case "tokens":
            assert isinstance(spec, TokensSpec)
            return {"sequence_length": spec.sequence_length}
        case "pretrain":
            assert isinstance(spec, PretrainSpec)
            return _of_pretraining(spec, execution, vocab_size)
        case "tune":
            assert isinstance(spec, TuneSpec)
            search: Needs = {"trials": spec.search.trials, "max_epochs": spec.max_epochs}
            return search | _of_trial(execution.trials)
        case "final":
            assert isinstance(spec, FinalSpec)
            return {"trainings": _trainings(spec)} | _of_trial(execution.trials)
    return {}


def describe(needs: Mapping[str, Any]) -> str:
    """One line for people, for example `2 workers x 1 CPU, 1.3 M parameters, 21 MB a rank`."""
    each = " and ".join(
        _counted(needs[name], noun)
        for name, noun in (("cpus", "CPU"), ("gpus", "GPU"))
        if needs.get(name)
    )
    if "ranks" in needs:
        each = f"{_counted(needs['ranks'], 'worker')} with {each}"
    most = needs.get("most_memory_per_rank_bytes")
    few = "" if most is None else f" ({_rounded(most, _BYTES)} with the fewest workers)"
    told: Mapping[str, Callable[[Any], str]] = {
        "workers": lambda number: (
            f"{_from(needs, 'least_workers')}{_counted(number, 'worker')} x {each}"
        ),
        "trials": lambda number: f"{_counted(number, 'trial')} x {each}",
        "max_epochs": lambda number: f"at most {_counted(number, 'epoch')} each",
        "trainings": lambda number: f"{_counted(number, 'training')} x {each}",
        "parameters": lambda number: f"{_rounded(number, _THOUSANDS)} parameters",
        "memory_per_rank_bytes": lambda number: f"{_rounded(number, _BYTES)} a rank{few}",
        "host_memory_per_rank_bytes": lambda number: f"{_rounded(number, _BYTES)} on the host",
        "optimizer_steps": lambda number: _counted(number, "step"),
        "tokens": lambda number: f"{_rounded(number, _THOUSANDS)} tokens",
        "sequence_length": lambda number: f"sequences of {_counted(number, 'token')}",
    }
    line = ", ".join(tell(needs[name]) for name, tell in told.items() if name in needs)
    return f"{line}; WARNING: {needs['does_not_fit']}" if "does_not_fit" in needs else line


def _of_pretraining(spec: PretrainSpec, execution: ClusterConfig, vocab_size: int | None) -> Needs:
    config, gang = spec.pretrain, execution.pretrain
    precision = _precision(config, gang)
    found: Needs = {
        "workers": gang.most_workers,
        **_of_process(gang),
        "precision": precision,
        "optimizer_steps": config.total_steps,
        "sequences": config.total_steps * config.global_batch_size,
        "tokens": config.total_steps * config.global_batch_tokens,
    }
    is_elastic = gang.least_workers < gang.most_workers
    if is_elastic:
        found["least_workers"] = gang.least_workers
    network = network_size(spec.model, vocab_size, config.sequence_length) if vocab_size else None
    if network is not None:
        # Muon counts as Adam: of its one moment DeepSpeed's stages 1 and 2 keep two copies.
        found["parameters"] = network.parameters
        memory = _memory(network, gang, gang.most_workers, precision, config.zero)
        found["memory_per_rank_bytes"] = memory.total
        most = memory
        if is_elastic:
            most = _memory(network, gang, gang.least_workers, precision, config.zero)
            found["most_memory_per_rank_bytes"] = most.total
        if memory.host:
            found["host_memory_per_rank_bytes"] = memory.host
        if gang.device_memory_gb is not None and most.total > gang.device_memory_gb * 1e9:
            found["does_not_fit"] = _advice(network, most.total, precision, config.zero, gang)
    return found


def _memory(
    network: NetworkSize, gang: GangConfig, workers: int, precision: Precision, zero: ZeroConfig
) -> MemoryEstimate:
    memory = memory_per_rank(network, ranks=workers, precision=precision, zero=zero)
    if gang.gpus == 0:  # what is offloaded stays in the memory it would be offloaded from
        memory = replace(memory, buffers=memory.buffers + memory.host, host=0)
    return memory


def _advice(
    network: NetworkSize, needed: int, precision: Precision, zero: ZeroConfig, gang: GangConfig
) -> str:
    """Why a gang's devices are too small for a model, with numbers, and what would fit."""
    assert gang.device_memory_gb is not None
    ways = what_would_fit(
        network,
        ranks=gang.least_workers,
        precision=precision,
        zero=zero,
        device_bytes=gang.device_memory_gb * 1e9,
        has_host=gang.gpus > 0,
    )
    return (
        f"the model states alone take {_rounded(needed, _BYTES)} a rank, and "
        f"cluster.pretrain.device_memory_gb is {gang.device_memory_gb:g}; "
        + (f"what would fit: {' or '.join(ways)}" if ways else "make the model smaller")
    )


def _precision(config: PretrainConfig, worker: WorkerConfig) -> Precision:
    """`auto` counts as bf16 on any GPU; the accelerator itself is asked when training begins."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if worker.gpus else "fp32"


def _of_process(worker: WorkerConfig) -> Needs:
    return {"cpus": worker.cpus, "gpus": worker.gpus}


def _of_trial(trial: TrialConfig) -> Needs:
    return ({"ranks": trial.workers} if trial.workers > 1 else {}) | _of_process(trial)


def _trainings(spec: FinalSpec) -> int:
    """Of the best trials with each seed, and of the control: first each learning rate with one
    seed, then the best of them with the others.
    """
    controls, seeds = spec.controls, spec.final.seeds
    fractions = sum(fraction < 1.0 for fraction in controls.label_fractions)
    pretrained = (spec.final.top + fractions) * seeds
    if not controls.scratch:
        return pretrained
    return pretrained + len(controls.scratch_learning_rates) + (1 + fractions) * seeds - 1


def _from(needs: Mapping[str, Any], name: str) -> str:
    """The beginning of a range, where there is one."""
    return f"{needs[name]} to " if name in needs else ""


def _counted(number: float, noun: str) -> str:
    return f"{number:,.12g} {noun}{'s' if number > 1 else ''}"


def _rounded(number: float, units: tuple[str, ...]) -> str:
    """To the nearest tenth below ten, to the nearest whole above, in the unit that suits."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    digits = 1 if power and number < 9.95 else 0
    return f"{number:.{digits}f} {units[power]}".rstrip()
