"""A tiny pretraining, ready to run in this process or on several ranks."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from conftest import WORDS

from trainers import pretrain, segments, tokenizer, tokens
from trainers.config import ModelConfig, Packing, TokenizerConfig
from trainers.pretrain import PretrainExecution, PretrainWork
from trainers.pretrain_config import PretrainConfig
from trainers.tokens import ShardWork

LENGTH = 16
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
}


class KilledError(Exception):
    """Stands for whatever ends a training in its middle."""


@dataclass
class Reports:
    """Collects what rank 0 reports; raises after a step where told to."""

    kill_after: int | None = None
    losses: dict[int, float] = field(default_factory=dict)

    def report(self, metrics: Mapping[str, float]) -> None:
        self.losses[int(metrics["optimizer_step"])] = metrics["loss"]
        if self.kill_after is not None and metrics["optimizer_step"] >= self.kill_after:
            raise KilledError

    def is_leaving(self) -> bool:
        return False


def pack(folder: Path, packing: Packing) -> Path:
    """The folder of tokens of the corpus in `folder`."""
    target = folder / f"tokens-{packing}"
    target.mkdir()
    packed = [
        tokens.pack_shard(ShardWork(shard, folder / "tokenizer", target, LENGTH, packing, source=0))
        for shard in sorted((folder / "corpus").iterdir())
    ]
    _, end_token = tokenizer.plain(folder / "tokenizer")
    tokens.write_index(
        target,
        packed,
        sequence_length=LENGTH,
        vocab_size=300,
        packing=packing,
        end_token=end_token,
        tokenizer=tokenizer.digest(folder / "tokenizer"),
    )
    return target


def prepare(folder: Path, packing: Packing = "concat") -> PretrainWork:
    """Corpus, tokenizer and tokens of a few thousand words."""
    lines = [" ".join(WORDS[start : start + 12]) for start in range(0, 6000, 12)]
    for name in ("corpus", "tokenizer"):
        (folder / name).mkdir(parents=True)
    parts = {"train": lines[len(lines) // 10 :], "validation": lines[: len(lines) // 10]}
    for part, texts in parts.items():
        shard = folder / "corpus" / f"{part}-00000.parquet"
        pyarrow.parquet.write_table(pa.table({"text": texts}), shard)
    bpe = TokenizerConfig(train="bpe", vocab_size=300)
    tokenizer.build(bpe, folder, lines, LENGTH).save_pretrained(str(folder / "tokenizer"))
    return PretrainWork(
        model=ModelConfig(architecture="llama", config=LLAMA),
        pretrain=pretrain_config(packing=packing),
        base=folder,
        tokenizer=folder / "tokenizer",
        tokens=pack(folder, packing).joinpath,
        weights=(1.0,),
        output=folder / "output",
        checkpoints=folder / "checkpoints",
        earlier_checkpoints=(),
    )


def trained_base(folder: Path) -> Path:
    """A base after 20 steps, for texts that are longer than it was trained on."""
    work = moved(prepare(folder), folder / "run")
    config = {**work.model.config, "max_position_embeddings": 128}
    model = work.model.model_copy(update={"config": config})
    run(replace(work, model=model), Reports())
    return work.output


def pretrain_config(**changes: Any) -> PretrainConfig:
    """20 steps of 8 sequences."""
    settings = {
        "sequence_length": LENGTH,
        "tokens": 20 * 8 * LENGTH,
        "global_batch_tokens": 8 * LENGTH,
        "learning_rate": 3e-3,
        "checkpoint": {"every_steps": 5},
        "evaluation": {"every_steps": 20},
    }
    return PretrainConfig.model_validate({**settings, **changes})


def moved(work: PretrainWork, folder: Path, **changes: Any) -> PretrainWork:
    """The same training with outputs elsewhere, perhaps with other settings."""
    config = pretrain_config(**changes) if changes else work.pretrain
    folder.mkdir(parents=True, exist_ok=True)
    return replace(
        work, pretrain=config, output=folder / "output", checkpoints=folder / "checkpoints"
    )


def run(work: PretrainWork, reports: Reports, micro_batch_size: int | None = None) -> Reports:
    """Train on this rank."""
    execution = PretrainExecution(threads=1, micro_batch_size=micro_batch_size, use_gpu=False)
    pretrain.run(work, execution, reports)
    return reports


def poison(steps: range, factor: float) -> None:
    """Multiply the loss of this rank at some steps of its process; of one micro-batch."""
    true_loss, calls = segments.language_model_loss, count(1)

    def loss(module: Any, batch: Any, targets_per_sequence: float | None = None) -> Any:
        found = true_loss(module, batch, targets_per_sequence)
        return found * factor if module.training and next(calls) in steps else found

    segments.language_model_loss = loss


def main() -> None:
    """One rank of several: reads its work and how to run it from a pickle."""
    import json
    import pickle

    import torch.distributed as dist

    request = pickle.loads(Path(sys.argv[1]).read_bytes())
    dist.init_process_group("gloo")
    reports = Reports(kill_after=request["kill_after"])
    if dist.get_rank() == request["poisoned_rank"]:
        poison(request["poisoned_steps"], request["poison"])
    try:
        run(request["work"], reports, request["micro_batch_size"])
    except KilledError:
        # As SIGKILL would: no clean-up, no further collective.
        os._exit(9)
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(reports.losses), encoding="utf-8")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort a process now and then while Python takes them down


if __name__ == "__main__":
    main()
