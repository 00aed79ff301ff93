"""The step `pretrain`: a gang, begun again with smaller micro-batches when memory runs out."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.config import GangConfig
from cluster.interface import TaskFailedError
from trainers import checkpoint, licences
from trainers.errors import OutOfMemoryError
from trainers.pretrain_work import FACTS, PretrainExecution, PretrainWork, micro_batch_size
from trainers.reporting import Reporter
from workflows.artifacts import WORK, Attempt
from workflows.execution import StageContext
from workflows.pipeline import PretrainSpec

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
_RAY = "ray"
_MEMORY = "memory/micro_batch.json"


@dataclass(frozen=True)
class Again:
    """Train on with smaller micro-batches."""

    micro_batch_size: int


@dataclass(frozen=True)
class Fail:
    """There is nothing smaller to try."""

    reason: str


def after_out_of_memory(cause: str, *, size: int, share: int, gang: GangConfig) -> Again | Fail:
    """Half the micro-batch, as long as there is a half. Pure.

    Args:
        cause: what the rank said.
        size: sequences of one forward pass that were too many.
        share: sequences of the global batch on one worker.
        gang: who is out of memory.
    """
    if gang.micro_batch_size != "auto":
        return Fail(
            f"{cause} with cluster.pretrain.micro_batch_size {size}; lower it, or set it to auto"
        )
    if size == 1:
        return Fail(
            f"{cause} even with micro-batches of one sequence; shorten pretrain.sequence_length, "
            "raise pretrain.zero.stage with more workers, or use workers with more memory"
        )
    return Again(micro_batch_size(share, size // 2))


def run(context: StageContext) -> Mapping[str, Any]:
    """The base model, trained by a gang."""
    gang, batch = context.run.execution.pretrain, context.spec(PretrainSpec).pretrain
    # Of a gang whose size may change this is the smallest share: what fits many fits few.
    share = batch.global_batch_size // gang.most_workers
    size = _first_size(context.attempt, gang, share)
    while True:
        try:
            found = _train(context, size)
            break
        except TaskFailedError as error:
            if error.error_type != OutOfMemoryError.__name__:
                raise
            match after_out_of_memory(error.cause, size=size, share=share, gang=gang):
                case Fail(reason):
                    raise TaskFailedError(error.error_type, reason) from error
                case Again(smaller):
                    logger.warning(
                        "out of memory with micro-batches of %d sequences: %s; going on with %d",
                        *(size, error.cause, smaller),
                    )
                    size = smaller
                    _remember(context.attempt, size)
                    context.progress.note(f"out of memory: micro-batches of {size} from here on")
    last = found.pop("history")[-1]
    found.pop("speeds")
    return {**last, **found, "micro_batch_size": size, **_licence(context)}


def _licence(context: StageContext) -> dict[str, Any]:
    """Of the model that the training goes on from, where there is one."""
    folder = context.spec(PretrainSpec).model.from_
    return {} if folder is None else {"licence": licences.of(context.run.base / folder)}


def _train(context: StageContext, size: int) -> dict[str, Any]:
    """One run of the gang; the facts it left."""
    spec, gang = context.spec(PretrainSpec), context.run.execution.pretrain
    attempt = context.attempt
    earlier = attempt.earlier(CHECKPOINTS)
    work = PretrainWork(
        model=spec.model,
        pretrain=spec.pretrain,
        base=context.run.base,
        tokenizer=context.input("tokenizer"),
        tokens=context.stream("tokens", keep=2 * spec.pretrain.window_shards),
        weights=tuple(spec.weights),
        output=context.output,
        checkpoints=attempt.work / CHECKPOINTS,
        earlier_checkpoints=tuple(earlier),
        should_stop=context.should_stop,
    )
    execution = PretrainExecution(
        threads=gang.cpus,
        micro_batch_size=size,
        use_gpu=bool(gang.gpus),
        hang_after_s=gang.hang_after_s,
    )
    exchange = context.exchange(earlier)
    context.run.cluster.run_gang(
        exchange.rank(partial(_train_on_rank, execution), work),
        gang,
        name="pretrain",
        directory=f"{attempt.shared_work}/{_RAY}",
        log=context.log,
        on_report=context.progress,
    )
    exchange.collect(context.output)
    found: dict[str, Any] = json.loads((context.output / FACTS).read_text(encoding="utf-8"))
    return found


def _train_on_rank(
    execution: PretrainExecution,
    work: PretrainWork,
    share: checkpoint.Share | None,
    reporter: Reporter,
) -> None:
    from trainers import memory, pretrain  # torch, which the step's own process does without

    with memory.exhaustion_told_apart():
        pretrain.run(work, execution, reporter, share)


def _first_size(attempt: Attempt, gang: GangConfig, share: int) -> int:
    """What is set, or what fitted an attempt before this one, or a worker's whole share."""
    if gang.micro_batch_size != "auto":
        return micro_batch_size(share, gang.micro_batch_size)
    for work in attempt.earlier_work:
        if attempt.storage.exists(f"{work}/{_MEMORY}"):
            size = int(json.loads(attempt.storage.read(f"{work}/{_MEMORY}"))["size"])
            _remember(attempt, size)
            return micro_batch_size(share, size)
    return share


def _remember(attempt: Attempt, size: int) -> None:
    """For attempts after this one."""
    found = json.dumps({"schema_version": 1, "size": size})
    attempt.storage.write(f"{attempt.name}/{WORK}/{_MEMORY}", found.encode())
