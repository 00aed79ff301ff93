"""Hugging Face's Trainer on one rank: rows of one length, or short texts padded as by default.

What was chosen, and why:

- All settings are those of `TrainingArguments`' documentation; the optimizer is its default, which
  is PyTorch's fused AdamW. What differs from the defaults makes the mathematics pretune's: learning
  rate, schedule, weight decay and what decays (not embeddings), beta 2, the batch.
- Nothing that costs time and is not needed: no evaluation, no checkpoints, no reports, no progress
  bar, no log. The loss of each step is kept as a tensor and read after the last step.
- Rows of one length lie in memory as tensors and come in pretune's order (`sequential`).
- Short texts come in the Trainer's own random order, and `DataCollatorForLanguageModeling` pads
  each batch to its longest text; both are what one gets without asking for anything else. It has no
  packing of its own. Texts begin with the end token, as pretune's do.
- `dataloader_pin_memory` is off: on a CPU it only warns.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from bare import build_model, decaying_names, load_rows
from peer import DOCUMENTS, TOKENIZER, Measurement, Request, parse_arguments
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)


class RecordingTrainer(Trainer):
    """Keeps each step's loss and number of tokens, without waiting for them."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.recorded: list[tuple[Tensor, Tensor, int]] = []

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in all subjects."""
        return decaying_names(model)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None
    ) -> Tensor:
        """The Trainer's own."""
        ids = inputs["input_ids"]
        tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else ids.numel()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.recorded.append((loss.detach(), torch.as_tensor(tokens), ids.numel()))
        return loss


class Clock(TrainerCallback):
    """Told after each optimizer step."""

    def __init__(self, found: Measurement) -> None:
        self._found = found

    def on_step_end(self, *_args: Any, **_given: Any) -> None:
        """Note the time."""
        self._found.end_step()


def training_arguments(request: Request, folder: Path, is_fixed: bool) -> TrainingArguments:
    """See the module's docstring."""
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=request.steps,
        per_device_train_batch_size=request.batch if is_fixed else request.texts,
        learning_rate=request.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=request.weight_decay,
        adam_beta1=request.betas[0],
        adam_beta2=request.betas[1],
        max_grad_norm=request.clipping,
        seed=request.seed,
        train_sampling_strategy="sequential" if is_fixed else "random",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def main() -> None:
    """Train and print the measurement."""
    torch.set_num_threads(1)
    arguments = parse_arguments(__doc__)
    request, found = Request.read(arguments.shared), Measurement()
    is_fixed = request.packing == "concat"
    collator: Any = default_data_collator
    if is_fixed:
        rows = load_rows(arguments.shared).flatten(0, 1)
        dataset: list[dict[str, Any]] = [{"input_ids": row, "labels": row} for row in rows]
    else:
        documents = json.loads((arguments.shared / DOCUMENTS).read_text(encoding="utf-8"))
        dataset = [{"input_ids": ids} for ids in documents]
        tokenizer = AutoTokenizer.from_pretrained(str(arguments.shared / TOKENIZER))
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = RecordingTrainer(
        model=build_model(arguments.shared, request),
        args=training_arguments(request, arguments.folder, is_fixed),
        train_dataset=dataset,
        data_collator=collator,
        callbacks=[Clock(found)],
    )
    trainer.train()
    found.losses = [float(loss) for loss, _, _ in trainer.recorded]
    found.tokens = [int(tokens) for _, tokens, _ in trainer.recorded]
    found.positions = [positions for _, _, positions in trainer.recorded]
    found.parameters = sum(p.numel() for p in trainer.model.parameters())
    found.print_line("accelerate")


if __name__ == "__main__":
    main()
