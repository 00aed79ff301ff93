"""One function per kind of step: the only place where trainers meet the cluster."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from trainers import bases, corpus, probe, task_data, tokenizer, tokens
from trainers.task_types import class_of
from workflows import (
    base_gate,
    branch,
    corpora,
    features,
    final,
    gate,
    history,
    pretraining,
    trainings,
    tuning,
)
from workflows.execution import StageContext, tracking_uri, without_secrets
from workflows.history import RunHead
from workflows.models import ModelStore
from workflows.pipeline import (
    BaseSpec,
    DataSpec,
    SummarySpec,
    TokenizerSpec,
    TokensSpec,
    TrackSpec,
)
from workflows.probing import ProbeSpec
from workflows.shards import Shards

logger = logging.getLogger(__name__)

Facts = Mapping[str, Any]


def prepare_data(context: StageContext) -> Facts:
    """A task's rows, split."""
    spec = context.spec(DataSpec)
    kind = class_of(spec.type, multi_label=spec.multi_label)
    return task_data.prepare(spec.data, kind, context.run.base, context.output)


def build_tokenizer(context: StageContext) -> Facts:
    """A tokenizer of the corpus' training documents."""
    spec = context.spec(TokenizerSpec)
    shards = corpus.shards(context.input("corpus"), corpus.TRAIN)
    texts = tokenizer.sample(
        (text for shard in shards for text in corpus.read(shard)),
        sample_bytes=spec.tokenizer.sample_bytes,
        total_bytes=sum(corpus.text_bytes(shard) for shard in shards),
    )
    built = tokenizer.build(spec.tokenizer, context.run.base, texts, spec.max_length)
    built.save_pretrained(str(context.output))
    return {"vocab_size": len(built)}


def pack_tokens(context: StageContext) -> Facts:
    """Training sequences, one cluster task per shard of the corpus."""
    spec, shards = context.spec(TokensSpec), Shards(context)
    texts = [
        shard for part in corpus.PARTS for shard in corpus.shards(context.input("corpus"), part)
    ]
    packed = shards.compute(
        "pack",
        tokens.pack_shard,
        [
            tokens.ShardWork(
                shard,
                tokenizer=context.input("tokenizer"),
                directory=shards.directory("pack", number),
                sequence_length=spec.sequence_length,
                packing=spec.packing,
                source=corpus.source_of(shard),
            )
            for number, shard in enumerate(texts)
        ],
        tokens.PackedShard,
    )
    for shard in packed:
        shards.place(shard, shard.result.file, shard.result.file)
    results = [shard.result for shard in packed]
    plain, end_token = tokenizer.plain(context.input("tokenizer"))
    tokens.write_index(
        context.output,
        results,
        sequence_length=spec.sequence_length,
        vocab_size=plain.get_vocab_size(),
        packing=spec.packing,
        end_token=end_token,
        tokenizer=tokenizer.digest(context.input("tokenizer")),
    )
    return tokens.facts(results)


def take_base(context: StageContext) -> Facts:
    """A model that is there already, as the base of fine-tuning."""
    base = context.spec(BaseSpec).base
    if base.store is None:
        return bases.take_in(context.run.base / str(base.from_), context.output)
    store = ModelStore(context.run.paths.storage)
    version = store.resolve(base.store)
    return {"version": base.store, **bases.take_in(store.verified(version), context.output)}


def probe_task(context: StageContext) -> Facts:
    """A first look at a task, as facts alone."""
    spec, trial = context.spec(ProbeSpec), context.run.execution.trials
    work = probe.Probe(
        spec.task,
        context.input("base"),
        context.input("data"),
        spec.rows,
        trainings.execution_of(trial),
    )
    function = context.exchange().mapped(probe.look)
    (found,) = context.run.cluster.map(function, [work], trial, context.log)
    facts: Facts = found
    return facts


def write_report(context: StageContext) -> Facts:
    """One HTML file about everything that succeeded."""
    from workflows.report import gathering  # imports matplotlib

    paths, name = context.run.paths, context.spec(SummarySpec).name
    head = history.head(paths.storage, paths.run_id) or RunHead(paths.run_id, name, {})
    steps = list(context.step.inputs)
    page = gathering.of_records(context.artifacts, head, steps, context.records)
    paths.storage.write(paths.report, page.encode())
    (context.output / "report.html").write_text(page, encoding="utf-8")
    return {"report_bytes": len(page.encode())}


def track(context: StageContext) -> Facts:
    """The run, its trials and its models in MLflow; where that cannot be, a warning is all."""
    from workflows import tracking  # imports MLflow

    paths, found = context.run.paths, _curves(context)
    uri = tracking_uri(paths.storage)
    try:
        written = tracking.track(uri, paths.storage, paths.run_id, context.records.values())
    except tracking.MirrorError as error:
        logger.warning("%s", error)
        return found | {"uri": without_secrets(uri), "error": str(error)}
    return found | asdict(written)


def _curves(context: StageContext) -> dict[str, str]:
    """Where they are for TensorBoard, if somebody asked for that."""
    if not context.spec(TrackSpec).tensorboard:
        return {}
    from workflows import tensorboard  # imports tensorboardX

    paths = context.run.paths
    folder = f"{paths.directory}/tensorboard"
    tensorboard.write(paths.storage, folder, context.records.values())
    return {"tensorboard": paths.storage.url(folder)}


STAGES: Mapping[str, Callable[[StageContext], Facts]] = {
    "data": prepare_data,
    "corpus": corpora.run,
    "tokenizer": build_tokenizer,
    "tokens": pack_tokens,
    "pretrain": pretraining.run,
    "base": take_base,
    "features": features.run,
    "probe": probe_task,
    "branch": branch.take,
    "best_probe": branch.choose,
    "tune": tuning.run,
    "final": final.run,
    "promote": gate.run,
    "losses": base_gate.measure,
    "promote_base": base_gate.run,
    "report": write_report,
    "track": track,
}
