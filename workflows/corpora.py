"""The documents of all sources, cleaned, each once, without what tasks are tested on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers import cleaning, corpus, documents, pieces, task_data
from trainers.config import CorpusConfig
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
    texts = [text for task in config.held_out for text in task_data.test_texts(context.input(task))]
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
    spec, planned = context.spec(CorpusSpec), context.step.outside
    sources = list(enumerate(spec.corpus.sources))
    made = {n: context.input(key) for n, _ in sources if (key := f"source{n}") in spec.made}
    found = {
        n: documents.expand(source.path, made.get(n, context.run.base), source.format)
        for n, source in sources
    }
    _require_planned({file for n in found if n not in made for file in found[n]}, planned)
    for number, source in sources:
        root = made.get(number)
        for shard in pieces.cut(
            pinned(source, planned), number, found[number], spec.corpus.shard_bytes
        ):
            yield shard.relative_to(root) if root else shard, root


def _require_planned(found: set[str], planned: Mapping[str, str]) -> None:
    # Behind a hub name the plan has its revision.
    names = {name if name in found else name.partition("@")[0] for name in planned}
    changed = sorted(names ^ found)
    if changed:
        raise DataError(
            f"{changed[0]}: this file came or went after the run was planned; "
            "run the same command again"
        )
