"""Pretune's training as the subjects run it, and what is prepared for all of them once."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from peer import DOCUMENTS, MODEL, ROWS, TOKENIZER, TOKENS, Request

from trainers import model, tokenizer, tokens
from trainers.batches import Cursor, GlobalBatches
from trainers.config import ModelConfig, TokenizerConfig
from trainers.pretrain import PretrainWork
from trainers.pretrain_config import PretrainConfig
from trainers.sequences import TokenSequences
from trainers.tokens import PackedShard, ShardWork


def prepare(shared: Path, texts: list[str], vocab_size: int, request: Request) -> PackedShard:
    """Tokenizer, tokens and the request, for pretune; rows and documents, for the peers.

    There is no held-out text: so nothing is evaluated in the time that is measured.
    """
    shard = shared / "train-00000.parquet"
    pyarrow.parquet.write_table(pa.table({"text": texts}), shard)
    bpe = TokenizerConfig(train="bpe", vocab_size=vocab_size)
    built = tokenizer.build(bpe, shared, texts, request.sequence_length)
    built.save_pretrained(str(shared / TOKENIZER))
    (shared / TOKENS).mkdir()
    packed = tokens.pack_shard(
        ShardWork(
            shard,
            tokenizer=shared / TOKENIZER,
            directory=shared / TOKENS,
            sequence_length=request.sequence_length,
            packing=request.packing,
            source=0,
        )
    )
    plain, end = tokenizer.plain(shared / TOKENIZER)
    tokens.write_index(
        shared / TOKENS,
        [packed],
        sequence_length=request.sequence_length,
        vocab_size=plain.get_vocab_size(),
        packing=request.packing,
        end_token=end,
        tokenizer=tokenizer.digest(shared / TOKENIZER),
    )
    request.write(shared)
    config = ModelConfig(architecture=request.architecture, config=request.network)
    first = model.for_pretraining(config, shared, built, request.sequence_length, request.seed)
    first.config.save_pretrained(str(shared / MODEL))
    np.save(shared / ROWS, read_rows(shared, request))
    if request.packing == "best_fit":
        encoded = plain.encode_batch_fast(texts, add_special_tokens=False)
        documents = [[end, *encoding.ids][: request.sequence_length] for encoding in encoded]
        (shared / DOCUMENTS).write_text(json.dumps(documents), encoding="utf-8")
    return packed


def read_rows(shared: Path, request: Request) -> np.ndarray:
    """The sequences of each step in pretune's order, shape (steps, sequences, length)."""
    batches = GlobalBatches(
        TokenSequences((shared / TOKENS).joinpath, "train"),
        weights=(1.0,),
        window=PretrainConfig.model_fields["shuffle_shards"].default,
        global_batch_size=request.batch,
        rank=0,
        world_size=1,
        micro_batch=None,
        seed=request.seed,
        masking=None,
    )
    cursor, rows = Cursor(), []
    for _ in range(request.steps):
        (batch,), cursor = batches.read(cursor)
        rows.append(batch["input_ids"].numpy())
    return np.stack(rows)


def pretrain_work(shared: Path, folder: Path, request: Request, stage: int) -> PretrainWork:
    """The training as the subjects run it: no checkpoint and no evaluation before its end."""
    config = PretrainConfig.model_validate(
        {
            "sequence_length": request.sequence_length,
            "packing": request.packing,
            "tokens": request.steps * request.batch * request.sequence_length,
            "global_batch_tokens": request.batch * request.sequence_length,
            "learning_rate": request.learning_rate,
            "schedule": {"name": "cosine", "warmup": 0.0},
            "betas": request.betas,
            "weight_decay": request.weight_decay,
            "gradient_clipping": request.clipping,
            "zero": {"stage": stage},
            "seed": request.seed,
            "checkpoint": {"every_steps": request.steps},
            "evaluation": {"every_steps": request.steps},
        }
    )
    (folder / "output").mkdir(exist_ok=True)
    return PretrainWork(
        model=ModelConfig(architecture=request.architecture, config=request.network),
        pretrain=config,
        base=shared,
        tokenizer=shared / TOKENIZER,
        tokens=(shared / TOKENS).joinpath,
        weights=(1.0,),
        output=folder / "output",
        checkpoints=folder / "checkpoints",
        earlier_checkpoints=(),
    )
