"""A model that is there already, taken in as the base of fine-tuning."""

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModel, PreTrainedModel

from trainers import tokenizer
from trainers.errors import DataError


def take_in(folder: Path, directory: Path) -> dict[str, Any]:
    """Write a model as `transformers` writes it today, its tokenizer beside it; facts of it.

    So whatever form the weights have in `folder`, what is made of the base reads one form.

    Args:
        folder: a Hugging Face folder.
        directory: an empty one.

    Raises:
        DataError: no base can be made of it; says why.
    """
    model, missing = _loaded(folder)
    network = model.config
    if network.is_encoder_decoder:
        raise DataError(
            f"{folder}: {network.model_type} is an encoder with a decoder; a base is one or the "
            "other, such as BERT or Llama"
        )
    if missing:
        raise DataError(
            f"{folder}: its files lack {len(missing)} weights of a {network.model_type}, "
            f"first {missing[0]}"
        )
    loaded = tokenizer.existing(folder, "base")
    if len(loaded) > network.vocab_size:
        raise DataError(
            f"{folder}: its tokenizer has {len(loaded)} tokens, its model {network.vocab_size}"
        )
    model.save_pretrained(str(directory))
    loaded.save_pretrained(str(directory))
    return {"architecture": network.model_type, "parameters": model.num_parameters()}


def _loaded(folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """A model of the class it was saved from, and names of weights that its files lack.

    A language model keeps its head, then. Heads that are missing do not count: they are made anew
    for a task, or tied to the embeddings.
    """
    try:
        names = AutoConfig.from_pretrained(str(folder)).architectures or [""]
        model, told = getattr(transformers, names[0], AutoModel).from_pretrained(
            str(folder), dtype="auto", output_loading_info=True
        )
    except Exception as error:  # folders are broken in many ways, each with an error of its own
        raise DataError(f"{folder}: {' '.join(str(error).split())}") from error
    is_bare = model is model.base_model
    return model, sorted(
        name
        for name in told["missing_keys"]
        if (is_bare or name.startswith(f"{model.base_model_prefix}."))
        and ".pooler." not in f".{name}."
    )
