"""The steps `tokenizer` and `tokens`: from a corpus to training sequences."""

from collections.abc import Mapping
from typing import Any

from trainers import corpus, tokenizer, tokens
from workflows.execution import StageContext
from workflows.pipeline import TokenizerSpec, TokensSpec
from workflows.shards import Shards


def build(context: StageContext) -> Mapping[str, Any]:
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


def pack(context: StageContext) -> Mapping[str, Any]:
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
