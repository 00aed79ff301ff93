"""Self-supervised training of the base model: what every rank of the gang runs."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from trainers import checkpoint, corpus, loop, model, optim, segments, tokenizer
from trainers.batches import Cursor, GlobalBatches, Prefetcher, to_batch
from trainers.config import ModelConfig, PretrainConfig
from trainers.engine import DeepSpeedEngine, Engine, PlainEngine, Ranks, muon
from trainers.errors import DataError
from trainers.reporting import Reporter, StoppedError
from trainers.segments import Batch, Masking
from trainers.sequences import TokenSequences

logger = logging.getLogger(__name__)

FACTS = "pretraining.json"

_REPORTS = 100
_EVALUATIONS = 10
_STOP_CHECK_STEPS = 10
_MOST_EVALUATION_TOKENS = 1 << 16


def _never() -> bool:
    return False


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class PretrainWork:
    """What is trained, and where its inputs and outputs are."""

    model: ModelConfig
    pretrain: PretrainConfig
    base: Path
    """Folder of the pipeline file, for `model.from`."""
    tokenizer: Path
    tokens: Callable[[str], Path]
    """Opens a file of the folder of tokens on this node."""
    weights: tuple[float, ...]
    """Times the sequences of each source of the corpus come in one epoch."""
    output: Path
    """Gets the Hugging Face folder and `pretraining.json`."""
    checkpoints: Path
    """Gets this attempt's checkpoints."""
    earlier_checkpoints: tuple[Path, ...]
    """Of attempts before this one; only read."""
    should_stop: Callable[[], bool] = _never
    """Asked on rank 0: then all ranks save a checkpoint and raise `StoppedError`."""


@dataclass(frozen=True)
class PretrainExecution:
    """How it is run; changes no result."""

    threads: int
    """Of one rank."""
    micro_batch_size: int | None
    use_gpu: bool


def run(
    work: PretrainWork,
    execution: PretrainExecution,
    reporter: Reporter,
    share: checkpoint.Share | None = None,
) -> None:
    """Train on this rank and export the model. Collective: every rank of the gang calls it.

    Goes on from the newest intact checkpoint. Ranks come from torchrun's environment variables;
    with more than one, torch's process group must be set up. Ranks that see no common folder need a
    `share`.
    """
    torch.set_num_threads(execution.threads)
    ranks = Ranks.from_environment()
    logger.info("rank %d of %d begins", ranks.rank, ranks.world_size)
    session = _Session(work, execution, ranks, share)
    logger.info("model and optimizer are ready")
    session.resume()
    session.train(reporter)
    session.export()


class _Session:
    """One rank's training under way."""

    def __init__(
        self,
        work: PretrainWork,
        execution: PretrainExecution,
        ranks: Ranks,
        share: checkpoint.Share | None,
    ) -> None:
        self._work, self._config, self._ranks = work, work.pretrain, ranks
        self._share = share
        self._tokenizer = tokenizer.load(work.tokenizer)
        self._device = _device(execution, ranks)
        self._sequences = TokenSequences(work.tokens, corpus.TRAIN, self._config.window_shards)
        self._validation = TokenSequences(work.tokens, corpus.VALIDATION)
        _require_own_tokens(self._sequences, work)
        self._masking = _masking(work, self._tokenizer)
        self._batches = GlobalBatches(
            self._sequences,
            weights=work.weights,
            window=self._config.shuffle_shards,
            global_batch_size=self._config.global_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            micro_batch=execution.micro_batch_size,
            seed=self._config.seed,
            masking=self._masking,
        )
        self._model = model.for_pretraining(
            work.model, work.base, self._tokenizer, self._config.sequence_length, self._config.seed
        )
        if self._config.packing == "best_fit":
            model.require_documents_apart(
                self._model,
                work.model.objective,
                end_token=self._sequences.end_token,
                vocab_size=self._sequences.vocab_size,
                sequence_length=self._config.sequence_length,
            )
        self._precision = _precision(self._config, self._device)
        self._engine = self._build_engine()
        self._cursor, self._first_step = Cursor(), 0
        self._history: list[dict[str, float]] = []
        self._timing = {"data_wait_s": 0.0, "training_s": 0.0}

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        found = checkpoint.newest([self._work.checkpoints, *self._work.earlier_checkpoints])
        if found is None:
            return
        if found.state["world_size"] != self._ranks.world_size:
            raise ValueError(
                f"{found.directory} was written by {found.state['world_size']} workers and cannot "
                f"be resumed by {self._ranks.world_size}; set cluster.pretrain.workers back, "
                f"or remove it to train from the start"
            )
        self._engine.load(found.directory)
        self._cursor = Cursor(**found.state["cursor"])
        self._first_step = found.step
        self._history = found.state["history"]
        logger.info("resumed after step %d from %s", found.step, found.directory)

    def train(self, reporter: Reporter) -> None:
        """The steps that are left."""
        config = self._config
        total = config.total_steps
        report_every = max(1, total // _REPORTS)
        evaluate_every = max(1, total // _EVALUATIONS)
        losses: list[Tensor] = []
        started, tokens_before = time.monotonic(), self._first_step * config.global_batch_tokens

        coming = Prefetcher(self._batches, self._cursor)

        def read(step: int) -> list[Batch]:  # noqa: ARG001 -- the cursor knows the step
            batches, self._cursor = coming.next()
            return batches

        def after_step(step: int, loss: Tensor) -> None:
            losses.append(loss)
            done = step + 1
            if done % report_every == 0 or done == total:
                mean = self._engine.mean(torch.stack(losses).mean())
                losses.clear()
                if not math.isfinite(mean):
                    raise DivergedError(
                        f"the loss is {mean} after step {done}; lower pretrain.learning_rate"
                    )
                tokens = done * config.global_batch_tokens
                elapsed_s = time.monotonic() - started
                self._timing = {"data_wait_s": coming.wait_s, "training_s": elapsed_s}
                rate = (tokens - tokens_before) / elapsed_s
                facts = {
                    "optimizer_step": done,
                    "total_steps": total,
                    "tokens": tokens,
                    "loss": mean,
                }
                if done % evaluate_every < report_every or done == total:
                    facts |= self._evaluate()
                self._history.append(facts)
                reporter.report({**facts, "tokens_per_s": rate, "data_wait_s": coming.wait_s})
            if done % config.checkpoint.every_steps == 0 and done < total:
                self._save(done)
            if done % min(report_every, _STOP_CHECK_STEPS) == 0 and done < total:
                self._stop_if_asked(done)

        try:
            loop.train(
                self._engine,
                read,
                steps=range(self._first_step, total),
                learning_rate=optim.schedule(
                    config.schedule, peak=config.learning_rate, total_steps=total
                ),
                seed=config.seed * 1_009 + self._ranks.rank,
                after_step=after_step,
            )
        finally:
            coming.close()
            self._sequences.close()

    def _stop_if_asked(self, step: int) -> None:
        """End with a checkpoint when rank 0 is asked to; all ranks learn of it together."""
        is_asked = self._ranks.rank == 0 and self._work.should_stop()
        if self._engine.mean(torch.tensor(float(is_asked), device=self._device)) == 0.0:
            return
        if step % self._config.checkpoint.every_steps:
            self._save(step)
        raise StoppedError(f"stopped after step {step}, which is saved")

    def export(self) -> None:
        """Write the Hugging Face folder and the facts of the training, on rank 0."""
        weights = self._engine.weights()
        if self._ranks.rank == 0:
            model.export(self._work.output, self._model, weights, self._tokenizer)
            facts = {
                "parameters": sum(weight.numel() for weight in weights.values()),
                "precision": self._precision,
                "world_size": self._ranks.world_size,
                "samples": self._cursor.samples,
                "samples_digest": self._cursor.digest,
                **self._timing,
                "history": self._history,
            }
            (self._work.output / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            logger.info("exported the model to %s", self._work.output)
        self._barrier()

    def _build_engine(self) -> Engine:
        config = self._config
        settings: dict[str, Any] = {
            "learning_rate": config.learning_rate,
            "weight_decay": config.weight_decay,
            "betas": config.betas,
        }
        optimizer: Optimizer = (
            muon(optim.muon_groups(self._model, **settings), self._device)
            if config.optimizer == "muon"
            else optim.adamw(self._model, **settings)
        )
        common: dict[str, Any] = {
            "gradient_clipping": config.clipping_norm,
            "device": self._device,
        }
        loss = partial(
            segments.language_model_loss, targets_per_sequence=self._targets_per_sequence()
        )
        if not torch.distributed.is_initialized():
            return PlainEngine(self._model, optimizer, loss, **common)
        return DeepSpeedEngine(
            self._model,
            optimizer,
            loss,
            zero=config.zero,
            micro_batch_size=self._batches.micro_batch_size,
            micro_batches=self._batches.micro_batches,
            precision=self._precision,
            **common,
        )

    def _targets_per_sequence(self) -> float | None:
        """What losses are divided by where sequences predict different numbers of tokens."""
        sequences, masking = self._sequences, self._masking
        if sequences.packing == "concat":
            return None
        if masking is None:
            return sequences.targets_per_sequence
        # Almost all sequences have almost as many tokens; any constant is fair to all of them.
        return max(1.0, round(masking.probability * sequences.text_tokens_per_sequence))

    def _evaluate(self) -> dict[str, float]:
        """Loss on held-out sequences, the first few where there are many; each rank takes a part.

        Every rank runs the same number of forward passes: with ZeRO-3 they are collective.
        """
        limit = _MOST_EVALUATION_TOKENS // self._config.sequence_length
        count = min(len(self._validation), limit) // self._ranks.world_size
        if count == 0:
            return {}
        first = self._ranks.rank * count
        summed = torch.zeros(2, device=self._device)  # losses and predicted tokens
        self._engine.module.eval()
        size = self._batches.micro_batch_size
        with torch.no_grad():
            for start in range(first, first + count, size):
                positions = range(start, min(start + size, first + count))
                batch = to_batch(
                    torch.from_numpy(self._validation.read(positions)),
                    positions,
                    packing=self._validation.packing,
                    end_token=self._validation.end_token,
                    masking=self._masking,
                    seed=self._config.seed,
                )
                on_device = {name: tensor.to(self._device) for name, tensor in batch.items()}
                loss = segments.language_model_loss(self._engine.module, on_device)
                predicted = (on_device["labels"] != segments.IGNORED_LABEL).sum()
                summed += torch.stack([loss.float() * predicted, predicted])
        self._engine.module.train()
        losses, predicted_tokens = (self._engine.mean(part) for part in summed)
        return {"validation_loss": losses / predicted_tokens}

    def _save(self, step: int) -> None:
        """Write a checkpoint; the manifest, last, makes it one. Collective."""
        directory = checkpoint.directory_of(self._work.checkpoints, step)
        directory.mkdir(parents=True, exist_ok=True)
        self._engine.save(directory)
        if self._share:
            self._share.push(directory)
        self._barrier()
        if self._ranks.rank == 0:
            if self._share:
                self._share.pull(directory)
            state = {
                "world_size": self._ranks.world_size,
                "cursor": {"samples": self._cursor.samples, "digest": self._cursor.digest},
                "history": self._history,
            }
            checkpoint.seal(directory, step=step, state=state)
            if self._share:
                self._share.push(directory)
            for old in checkpoint.prune(self._work.checkpoints, self._config.checkpoint.keep):
                if self._share:
                    self._share.remove(old)
            logger.info("saved checkpoint %s", directory)

    def _barrier(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def _require_own_tokens(sequences: TokenSequences, work: PretrainWork) -> None:
    """Tokens that were taken in from elsewhere may be others than the pipeline's."""
    for name in ("sequence_length", "packing"):
        found, stated = getattr(sequences, name), getattr(work.pretrain, name)
        if found != stated:
            raise DataError(
                f"the tokens have {name} {found}, and pretrain.{name} is {stated}; set that, or "
                "compute the tokens anew with --force tokens"
            )
    digest = tokenizer.digest(work.tokenizer)
    if sequences.tokenizer != digest:
        raise DataError(
            f"the tokens were made by another tokenizer ({sequences.tokenizer[:16]}) than the one "
            f"in {work.tokenizer} ({digest[:16]}); compute them anew with --force tokens"
        )


def _masking(work: PretrainWork, loaded: PreTrainedTokenizerBase) -> Masking | None:
    if work.model.objective == "causal":
        return None
    if loaded.mask_token_id is None:
        raise ValueError("model.objective masked needs a tokenizer with a mask token")
    return Masking(work.pretrain.mask_probability, loaded.mask_token_id, len(loaded))


def _device(execution: PretrainExecution, ranks: Ranks) -> torch.device:
    if not execution.use_gpu:
        return torch.device("cpu")
    # Ray and torchrun alike: one visible device per local rank, or all of them.
    index = ranks.local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _precision(config: PretrainConfig, device: torch.device) -> str:
    """bf16 where the accelerator has it; fp32 on a CPU, where bf16 is emulated and far slower."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
