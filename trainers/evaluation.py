"""How well a language model predicts text it was not trained on."""

import math
from collections.abc import Callable

import torch

from trainers import segments
from trainers.batches import to_batch
from trainers.config import Objective
from trainers.engine import Engine, Ranks
from trainers.segments import IGNORED_LABEL, Batch, Masking
from trainers.sequences import TokenSequences


class Evaluation:
    """The first held-out sequences, the same whatever the number of ranks."""

    def __init__(
        self,
        sequences: TokenSequences,
        *,
        objective: Objective,
        masking: Masking | None,
        seed: int,
        max_tokens: int,
        micro_batch_size: int,
        ranks: Ranks,
    ) -> None:
        """Share the sequences among the ranks; `seed` is of the masks, as in training."""
        self._sequences, self._objective = sequences, objective
        self._masking, self._seed = masking, seed
        self._count = min(len(sequences), max(1, max_tokens // sequences.sequence_length))
        self._micro_batch_size, self._ranks = micro_batch_size, ranks

    def run(self, engine: Engine, beat: Callable[[], None]) -> dict[str, float]:
        """Loss in nats per predicted token, perplexity, and for causal models bits per byte.

        Empty where nothing is held out. Collective: every rank runs the same number of forward
        passes, with ZeRO-3 they gather the weights. After each of them `beat` is called.
        """
        if self._count == 0:
            return {}
        summed = torch.zeros(2, dtype=torch.float64, device=engine.device)  # nats, tokens
        engine.module.eval()
        with torch.no_grad():
            for batch in self._batches():
                on_device = {name: tensor.to(engine.device) for name, tensor in batch.items()}
                predicted = (on_device["labels"] != IGNORED_LABEL).sum()
                loss = segments.language_model_loss(engine.module, on_device).double()
                # Of a batch that only fills up this rank's share the mean is 0 / 0.
                nats = torch.where(predicted > 0, loss * predicted, 0.0)
                summed += torch.stack([nats, predicted.double()])
                beat()
        engine.module.train()
        nats_a_rank, tokens_a_rank = (engine.mean(part) for part in summed)
        return self._measures(nats_a_rank / tokens_a_rank)

    def _batches(self) -> list[Batch]:
        """This rank's share; behind the last sequence the first ones again, without labels."""
        share = -(-self._count // self._ranks.world_size)
        first = self._ranks.rank * share
        return [
            self._batch(range(start, min(start + self._micro_batch_size, first + share)))
            for start in range(first, first + share, self._micro_batch_size)
        ]

    def _batch(self, positions: range) -> Batch:
        read = [position % self._count for position in positions]
        batch = to_batch(
            torch.from_numpy(self._sequences.read(read)),
            positions,
            packing=self._sequences.packing,
            end_token=self._sequences.end_token,
            masking=self._masking,
            seed=self._seed,
        )
        is_beyond = torch.tensor([position >= self._count for position in positions])
        labels = batch["labels"].masked_fill(is_beyond.unsqueeze(1), IGNORED_LABEL)
        return {**batch, "labels": labels}

    def _measures(self, loss: float) -> dict[str, float]:
        found = {"validation_loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self._objective == "causal":
            bits = loss / math.log(2)
            found["bits_per_byte"] = bits * self._sequences.tokens_per_byte
        return found
