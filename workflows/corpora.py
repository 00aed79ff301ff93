"""The documents of all sources, cleaned, each once, without what tasks are tested on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers import cleaning, corpus, documents, pieces, tasks
from trainers.config import CorpusConfig, SourceConfig
from trainers.corpus import CleanedShard, Duplicates, KeptShard
from trainers.errors import DataError
from trainers.pieces import Shard
from workflows.execution import StageContext
from workflows.outside import pinned
from workflows.pipeline import CorpusSpec
from workflows.shards import Done, Shards


def run(context: StageContext) -> Mapping[str, Any]:
    """Three passes over the shards of the sources; see `trainers.corpus`."""
    config, shards = context.spec(CorpusSpec).corpus, Shards(context)
    cleaned = _cleaned(context, shards)
    found = _duplicates(config, shards, cleaned)
    kept = _kept(config, shards, cleaned, found)
    for number, shard in enumerate(kept):
        for file in shard.result.files:
            part, _, rest = file.partition("-")
            shards.place(shard, file, f"{part}-{number:05d}-{rest}")
    return corpus.facts(
        [shard.result for shard in cleaned],
        [shard.result for shard in found],
        [shard.result for shard in kept],
        sources=[source.path for source in config.sources],
    )


def _cleaned(context: StageContext, shards: Shards) -> list[Done[CleanedShard]]:
    config, held_out = context.spec(CorpusSpec).corpus, shards.share("held-out")
    texts = [text for task in config.held_out for text in tasks.test_texts(context.input(task))]
    cleaning.write_held_out(texts, config.clean, held_out)
    work = [
        corpus.CleanWork(
            shard,
            config.clean,
            skips_malformed=config.malformed == "skip",
            held_out=held_out,
            root=root,
            directory=shards.directory("clean", number),
        )
        for number, (shard, root) in enumerate(_source_shards(context))
    ]
    return shards.compute("clean", corpus.clean_shard, work, CleanedShard)


def _duplicates(
    config: CorpusConfig, shards: Shards, cleaned: list[Done[CleanedShard]]
) -> list[Done[Duplicates]]:
    count = corpus.slices_for(sum(shard.result.kept for shard in cleaned))
    work = [
        corpus.DuplicatesWork(
            number,
            count,
            keys=tuple(corpus.keys_of(shard.directory) for shard in cleaned),
            directory=shards.directory("duplicates", number),
        )
        for number in range(count if config.clean.deduplicate else 0)
    ]
    return shards.compute("duplicates", corpus.find_duplicates, work, Duplicates)


def _kept(
    config: CorpusConfig,
    shards: Shards,
    cleaned: list[Done[CleanedShard]],
    found: list[Done[Duplicates]],
) -> list[Done[KeptShard]]:
    work = [
        corpus.KeepWork(
            number,
            cleaned=shard.directory,
            duplicates=tuple(slice_.directory for slice_ in found),
            validation_fraction=config.validation_fraction,
            shard_bytes=config.shard_bytes,
            directory=shards.directory("keep", number),
        )
        for number, shard in enumerate(cleaned)
    ]
    return shards.compute("keep", corpus.keep_shard, work, KeptShard)


def _source_shards(context: StageContext) -> Iterator[tuple[Shard, Path | None]]:
    """The shards of all sources; with their folder, where a step of the user's own made it.

    Raises:
        DataError: other files are there than the plan has seen.
    """
    spec = context.spec(CorpusSpec)
    for number, source in enumerate(spec.corpus.sources):
        made = context.input(key) if (key := f"source{number}") in spec.made else None
        found = documents.expand(source.path, made or context.run.base, source.format)
        if not made:
            _require_planned(found, source, context.step.outside)
        seen = pinned(source, context.step.outside)
        for shard in pieces.cut(seen, number, found, spec.corpus.shard_bytes):
            yield shard.relative_to(made) if made else shard, made


def _require_planned(found: list[str], source: SourceConfig, planned: Mapping[str, str]) -> None:
    names = {name.partition("@")[0] if source.format == "dataset" else name for name in planned}
    new = [file for file in found if file not in names]
    if new:
        raise DataError(
            f"{new[0]}: this file came after the run was planned; run the same command again"
        )
