"""What the user may say about pretraining. Pure schemas: no torch, fast to load."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainers import deepspeed_keys
from trainers.config import WHERE, Fraction, Packing, PositiveFloat, PositiveInt, Schema

# Source: arXiv:2405.18392, 4.1: from a fifth on a longer decay brings almost nothing more.
_WSD_DECAY = 0.2

Attention = Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]
Offload = Literal["none", "cpu", "nvme"]
Precision = Literal["fp32", "bf16", "fp16"]


class ScheduleConfig(Schema):
    """How the learning rate moves over training."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after warm-up; all but `constant` end at `floor`. `wsd` stays at the peak and decays in
    the last steps (arXiv:2404.06395, 4; arXiv:2405.18392)."""

    warmup: Fraction = 0.05
    """Share of all steps in which the rate rises linearly from zero."""

    floor: Fraction = 0.0
    """Last learning rate as a share of the peak."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of all steps in which `wsd` decays; 0.2 when absent."""

    decay_shape: Literal["sqrt", "linear"] | None = None
    """How `wsd` decays: by 1 - sqrt(progress), the default and the better one in arXiv:2405.18392,
    or linearly."""

    branches: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = []
    """Shares of all steps, ascending, at which `wsd` branches off: the decay is run from there, its
    model is kept, and training goes on as if nothing had been. A branch decays in `decay` times the
    steps before it, which come on top of `tokens`."""

    @model_validator(mode="after")
    def _decay_is_of_wsd(self) -> Self:
        given = [name for name in ("decay", "decay_shape", "branches") if getattr(self, name)]
        if self.name != "wsd":
            if given:
                raise ValueError(
                    f"{' and '.join(given)} go with name: wsd; {self.name} has its own shape"
                )
            return self
        if self.warmup + self.decay_share > 1.0:
            raise ValueError(
                f"warmup ({self.warmup}) and decay ({self.decay_share}) are more than all steps; "
                "lower one"
            )
        if any(one >= other for one, other in pairwise(self.branches)):
            raise ValueError(f"branches ({self.branches}) must ascend")
        first, last = self.warmup, 1.0 - self.decay_share
        outside = [share for share in self.branches if not first < share <= last]
        if outside:
            raise ValueError(
                f"branches ({outside}) must lie behind warmup ({first:g}) and not behind the "
                f"beginning of the last decay ({last:g})"
            )
        return self

    @property
    def decay_share(self) -> float:
        """Of `wsd`."""
        return _WSD_DECAY if self.decay is None else self.decay

    def branch_spans(self, total_steps: int) -> list[tuple[int, int]]:
        """Of each branch the step at which it leaves the trunk, and the one behind its last.

        Raises:
            ValueError: there are too few steps to tell branches apart, or for one to decay.
        """
        spans: list[tuple[int, int]] = []
        for share in self.branches:
            start = round(share * total_steps)
            decay_steps = round(self.decay_share * start)
            previous = spans[-1][0] if spans else 0
            if start <= previous or decay_steps < 1:
                raise ValueError(
                    f"schedule.branches: of {total_steps} steps in all the branch at {share:g} "
                    f"leaves after {start} and decays in {decay_steps}; raise tokens, or drop it"
                )
            spans.append((start, start + decay_steps))
        return spans


ZeroStage = Literal[0, 1, 2, 3]


class ZeroConfig(Schema):
    """How optimizer state, gradients and parameters are sharded across workers."""

    stage: ZeroStage = 1
    """ZeRO stage: 0 is plain data parallelism, 1 shards the optimizer's state, 2 the gradients too,
    3 the weights too. Source: arXiv:1910.02054."""

    offload_optimizer: Annotated[Offload, WHERE] = "none"
    """Where the optimizer's state lives and is updated: on the device, in the host's memory or in
    files of `nvme_path`. Needs stage >= 1, nvme stage 3."""

    offload_parameters: Annotated[Offload, WHERE] = "none"
    """Where a rank's share of the weights lives while no layer needs it. Needs stage 3."""

    nvme_path: Annotated[str | None, WHERE] = None
    """A folder on each node's own disk, for what is offloaded to `nvme`."""

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> Self:
        optimizer, parameters = self.offload_optimizer, self.offload_parameters
        if optimizer != "none" and self.stage == 0:
            raise ValueError(
                f"offload_optimizer: {optimizer} needs stage >= 1 (got stage: 0); set stage: 1 or "
                "drop offload_optimizer"
            )
        if optimizer == "nvme" and self.stage < 3:
            # Stages 1 and 2 of DeepSpeed 0.19.8 take any offload for one to the host's memory.
            raise ValueError(
                f"offload_optimizer: nvme needs stage 3 (got stage: {self.stage}); set stage: 3 or "
                "offload_optimizer: cpu"
            )
        if parameters != "none" and self.stage < 3:
            raise ValueError(
                f"offload_parameters: {parameters} needs stage 3 (got stage: {self.stage}); set "
                "stage: 3 or drop offload_parameters"
            )
        uses_nvme = "nvme" in (optimizer, parameters)
        if uses_nvme and self.nvme_path is None:
            named = "offload_optimizer" if optimizer == "nvme" else "offload_parameters"
            raise ValueError(f"{named}: nvme needs nvme_path; set nvme_path or {named}: cpu")
        if self.nvme_path is not None and not uses_nvme:
            raise ValueError(
                "nvme_path goes with offload_optimizer: nvme or offload_parameters: nvme; set one "
                "of them or drop nvme_path"
            )
        return self


class CheckpointConfig(Schema):
    """When pretraining saves what it needs to go on. Part of no identity."""

    every_steps: PositiveInt = 200
    """Optimizer steps between two checkpoints."""

    keep: PositiveInt = 2
    """Newest checkpoints kept while training, beside the one of the lowest validation loss."""

    permanent_every_steps: PositiveInt | None = None
    """Checkpoints after a multiple of so many steps are kept until training ends."""


class EvaluationConfig(Schema):
    """When and on how much held-out text the base model is evaluated. Part of no identity."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between two evaluations; a tenth of all when absent."""

    max_tokens: PositiveInt = 1 << 16
    """Held-out tokens read at most, the same each time."""


class WatchConfig(Schema):
    """What happens when the loss or the gradient leaps or is no number.

    Source of skipping: OLMo 2, arXiv:2501.00656, 3.1; of rolling back: PaLM, arXiv:2204.02311, 5.1.
    """

    sigma: PositiveFloat | None = 6.0
    """A step is skipped whose loss or gradient norm lies so many standard deviations above the
    mean of the recent ones; null skips only what is no number."""

    window: Annotated[int, Field(ge=8)] = 128
    """Steps that count as recent; none is skipped as a leap before there were so many."""

    patience: PositiveInt = 3
    """After so many skipped steps in a row training goes back to the last checkpoint, and on behind
    the samples that were read since."""

    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """More of them end training."""


class PretrainConfig(Schema):
    """Self-supervised training of the base model."""

    sequence_length: Annotated[int, Field(ge=8)]
    """Tokens in one training sequence."""

    tokens: PositiveInt
    """Training tokens to consume in all, several epochs where the corpus is smaller."""

    packing: Packing = "concat"
    """`concat` joins documents by the end token and cuts anywhere; `best_fit` cuts only documents
    longer than a sequence and lets none attend to another (arXiv:2404.10830)."""

    shuffle_shards: PositiveInt = 16
    """Shards whose sequences are mixed at a time; of remote storage a node keeps about four
    times as many."""

    global_batch_tokens: PositiveInt
    """Tokens in one optimizer step over all workers; a multiple of sequence_length."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of hidden matrices; AdamW takes the rest."""

    learning_rate: PositiveFloat
    """Peak learning rate; Muon's updates are scaled to AdamW's size (arXiv:2502.16982, eq. 4)."""

    schedule: ScheduleConfig = ScheduleConfig()
    """Shape of the learning rate over training."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's moment decay rates."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled weight decay on matrices; none on norms, biases and embeddings."""

    gradient_clipping: PositiveFloat | None = None
    """Largest global gradient norm; 1.0 for adamw when absent. Muon's updates need none."""

    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of tokens the masked objective predicts (80 % mask, 10 % random, 10 % kept)."""

    whole_words: bool = False
    """Hide all tokens of a word or none, still the same share of tokens; mask, random or kept is
    drawn for each token (arXiv:1906.08101, 2.1). Only with the masked objective."""

    zero: ZeroConfig = ZeroConfig()
    """DeepSpeed ZeRO sharding."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 where the accelerator has it, fp32 on a CPU. `fp16` scales the loss by itself
    and is for GPUs that have no bf16."""

    deepspeed: dict[str, Any] = {}
    """DeepSpeed's own settings for which there is no field here, in DeepSpeed's form, for example
    `zero_optimization: {overlap_comm: true}`; used by two workers and more."""

    activation_checkpointing: Annotated[bool, WHERE] = False
    """Keep only the inputs of layers and compute the rest again in the backward pass: less memory,
    about a third more time (arXiv:1604.06174)."""

    compile: Annotated[bool, WHERE] = False
    """Run the network through torch.compile: slow first steps, faster others. Without effect on a
    CPU with several workers or muon."""

    attention: Annotated[Attention | None, WHERE] = None
    """How attention is computed; what `transformers` takes for the family when absent."""

    seed: int = 0
    """Of initial weights, data order and masks."""

    evaluation: Annotated[EvaluationConfig, WHERE] = EvaluationConfig()
    """Loss on held-out documents."""

    watch: WatchConfig = WatchConfig()
    """Steps that would do harm."""

    checkpoint: Annotated[CheckpointConfig, WHERE] = CheckpointConfig()
    """Checkpoints to resume from."""

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        if self.global_batch_tokens % self.sequence_length:
            raise ValueError(
                f"global_batch_tokens ({self.global_batch_tokens}) must be a multiple of "
                f"sequence_length ({self.sequence_length})"
            )
        if self.optimizer == "muon" and self.gradient_clipping is not None:
            raise ValueError(
                "gradient_clipping goes with optimizer: adamw; muon's updates need none"
            )
        if self.attention == "flash_attention_2" and self.packing == "best_fit":
            raise ValueError(
                "attention: flash_attention_2 goes with packing: concat; that it keeps the "
                "documents of packing: best_fit apart could not be shown in fp32"
            )
        if self.tokens < self.global_batch_tokens:
            raise ValueError(
                f"tokens ({self.tokens}) is less than one step's global_batch_tokens "
                f"({self.global_batch_tokens}); raise tokens"
            )
        self.schedule.branch_spans(self.total_steps)
        return self

    @model_validator(mode="after")
    def _deepspeed_leaves_ours_alone(self) -> Self:
        found = deepspeed_keys.problems(self.deepspeed, self._known_to_deepspeed())
        if found:
            raise ValueError("; ".join(f"deepspeed.{problem}" for problem in found))
        return self

    def _known_to_deepspeed(self) -> dict[str, Any]:
        """What DeepSpeed will be told, by its own dotted keys, as far as it is known here."""
        known: dict[str, Any] = {
            "gradient_clipping": self.clipping_norm,
            "zero_optimization.stage": self.zero.stage,
            "zero_optimization.offload_optimizer.device": self.zero.offload_optimizer,
            "zero_optimization.offload_param.device": self.zero.offload_parameters,
        }
        if self.zero.nvme_path is not None:
            for part in ("offload_optimizer", "offload_param"):
                known[f"zero_optimization.{part}.nvme_path"] = self.zero.nvme_path
        if self.precision != "auto":
            known["bf16.enabled"] = self.precision == "bf16"
            known["fp16.enabled"] = self.precision == "fp16"
        return known

    @property
    def clipping_norm(self) -> float:
        """Largest global gradient norm; 0.0 is no clipping."""
        return 0.0 if self.optimizer == "muon" else self.gradient_clipping or 1.0

    @property
    def window_shards(self) -> int:
        """Most shards that a window and its neighbour's edge touch: blocks are cut anywhere."""
        return 2 * self.shuffle_shards + 2

    @property
    def global_batch_size(self) -> int:
        """Sequences in one optimizer step over all workers."""
        return self.global_batch_tokens // self.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.tokens // self.global_batch_tokens
