"""What a pretraining consists of, put together on one rank: data, model, engine."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainers import corpus, flops, model, optim, options, segments, tokenizer, whole_words
from trainers.batches import GlobalBatches
from trainers.deepspeed_engine import DeepSpeedEngine
from trainers.deepspeed_setup import ShardedConstruction, muon
from trainers.engine import Engine, LossFunction, PlainEngine, Ranks, device_of, precision_of
from trainers.errors import DataError
from trainers.evaluation import Evaluation
from trainers.pretrain_config import Precision, PretrainConfig
from trainers.pretrain_work import PretrainExecution, PretrainWork
from trainers.segments import Masking
from trainers.sequences import TokenSequences


@dataclass(frozen=True)
class Parts:
    """Of one rank."""

    tokenizer: PreTrainedTokenizerBase
    batches: GlobalBatches
    evaluation: Evaluation
    model: PreTrainedModel
    engine: Engine
    precision: Precision
    sequences: TokenSequences
    flops_per_token: int | None
    """Of the model, forward and backward; None where it is not known."""

    def utilisation(self, tokens_per_s: float) -> float | None:
        """Share of this rank's device that the model's operations are; None where not known."""
        return flops.utilisation(
            tokens_per_s,
            flops_per_token=self.flops_per_token,
            device=self.engine.device,
            precision=self.precision,
        )

    def close(self) -> None:
        """Read no more."""
        self.sequences.close()


def assemble(work: PretrainWork, execution: PretrainExecution, ranks: Ranks) -> Parts:
    """All parts of a pretraining. Collective.

    Raises:
        DataError: they do not go together.
    """
    config, device = work.pretrain, device_of(ranks, use_gpu=execution.use_gpu)
    loaded = tokenizer.load(work.tokenizer)
    sequences = TokenSequences(work.tokens, corpus.TRAIN, config.window_shards)
    _require_own_tokens(sequences, work)
    masking = _masking(work, loaded)
    batches = GlobalBatches(
        sequences,
        weights=work.weights,
        window=config.shuffle_shards,
        global_batch_size=config.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batch=execution.micro_batch_size,
        seed=config.seed,
        masking=masking,
    )
    evaluation = Evaluation(
        TokenSequences(work.tokens, corpus.VALIDATION),
        objective=work.model.objective,
        masking=masking,
        seed=config.seed,
        max_tokens=config.evaluation.max_tokens,
        micro_batch_size=batches.micro_batch_size,
        ranks=ranks,
    )
    precision = precision_of(config, device)
    options.require_attention(config.attention, device)
    is_sharded = torch.distributed.is_initialized() and config.zero.stage == 3
    construction = (
        ShardedConstruction(config.zero, precision, device, config.deepspeed)
        if is_sharded
        else None
    )
    built = model.for_pretraining(
        work.model,
        work.base,
        loaded,
        config.sequence_length,
        config.seed,
        attention=config.attention,
        construction=construction,
    )
    options.prepare_model(built, config)
    if not is_sharded:
        _require_documents_apart(built, work, sequences)
    loss = partial(
        segments.language_model_loss,
        targets_per_sequence=_targets_per_sequence(sequences, masking),
    )
    engine = _engine(config, built, loss, batches, device, precision)
    options.prepare_engine(engine, config)
    if is_sharded:  # only the engine can gather the weights for a forward pass
        _require_documents_apart(built, work, sequences)
    operations = flops.flops_per_token(built, config.sequence_length)
    return Parts(loaded, batches, evaluation, built, engine, precision, sequences, operations)


def _require_documents_apart(
    built: PreTrainedModel, work: PretrainWork, sequences: TokenSequences
) -> None:
    if work.pretrain.packing == "best_fit":
        model.require_documents_apart(
            built,
            work.model.objective,
            end_token=sequences.end_token,
            vocab_size=sequences.vocab_size,
            sequence_length=work.pretrain.sequence_length,
        )


def _engine(
    config: PretrainConfig,
    built: PreTrainedModel,
    loss: LossFunction,
    batches: GlobalBatches,
    device: torch.device,
    precision: Precision,
) -> Engine:
    settings: dict[str, Any] = {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "betas": config.betas,
    }
    optimizer: Optimizer = (
        muon(optim.muon_groups(built, **settings), device)
        if config.optimizer == "muon"
        else optim.adamw(built, **settings)
    )
    common: dict[str, Any] = {
        "gradient_clipping": config.clipping_norm,
        "precision": precision,
        "device": device,
    }
    if not torch.distributed.is_initialized():
        return PlainEngine(built, optimizer, loss, **common)
    return DeepSpeedEngine(
        built,
        optimizer,
        loss,
        zero=config.zero,
        micro_batch_size=batches.micro_batch_size,
        micro_batches=batches.micro_batches,
        settings=config.deepspeed,
        **common,
    )


def _targets_per_sequence(sequences: TokenSequences, masking: Masking | None) -> float | None:
    """What losses are divided by where sequences predict different numbers of tokens."""
    if sequences.packing == "concat":
        return None
    if masking is None:
        return sequences.targets_per_sequence
    # Almost all sequences have almost as many tokens; any constant is fair to all of them.
    return max(1.0, round(masking.probability * sequences.text_tokens_per_sequence))


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
    words = whole_words.word_bounds(loaded) if work.pretrain.whole_words else None
    return Masking(work.pretrain.mask_probability, loaded.mask_token_id, len(loaded), words)
