"""A model that is there already, taken in as the base of fine-tuning."""

from pathlib import Path
from typing import Any

import transformers
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModel, PreTrainedModel

from trainers import licences, tokenizer
from trainers.errors import DataError
from trainers.model import is_of_backbone


def take_in(folder: Path, directory: Path) -> dict[str, Any]:
    """Write a model as `transformers` writes it today, its tokenizer beside it; facts of it.

    So all is read once, whatever form the weights have in `folder`, before anything relies on it.

    Args:
        folder: a Hugging Face folder.
        directory: an empty one.

    Raises:
        DataError: no base can be made of it; says why.
    """
    found, missing = _loaded(folder)
    network = found.config
    if network.is_encoder_decoder:
        raise DataError(
            f"{folder}: {network.model_type} is an encoder with a decoder; a base is one or the "
            "other, such as BERT or Llama"
        )
    lacking = sorted(name for name in missing if is_of_backbone(found, name))
    if lacking:
        raise DataError(
            f"{folder}: its files lack {len(lacking)} weights of a {network.model_type}, "
            f"first {lacking[0]}"
        )
    loaded = tokenizer.existing(folder, "base")
    if len(loaded) > network.vocab_size:
        raise DataError(
            f"{folder}: its tokenizer has {len(loaded)} tokens, its model {network.vocab_size}"
        )
    found.save_pretrained(str(directory))
    loaded.save_pretrained(str(directory))
    return {
        "architecture": network.model_type,
        "parameters": found.num_parameters(),
        "licence": licences.of(folder),
    }


def weights_of(directory: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Configuration and weights of a Hugging Face folder, as plain values to hand to workers.

    Names are those of the model's modules: in files some families call their weights otherwise, or
    keep them in other pieces. What the files lack is left out: `transformers` would make it up.
    """
    model, missing = _loaded(directory)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }
    # NumPy has no bfloat16; trials train in fp32.
    weights = {
        name: tensor.detach().float().numpy()
        for name, tensor in model.state_dict().items()
        if name not in tied | missing
    }
    network = model.config.to_dict()
    network.pop("_name_or_path", None)  # where it lies now would go into what is made of it
    return network, weights


def _loaded(folder: Path) -> tuple[PreTrainedModel, set[str]]:
    """A model of the class it was saved from, and names of weights that its files lack.

    A language model keeps its head, then.

    Raises:
        DataError: there is no model in the folder.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        names = config.architectures or [""]
        model, told = getattr(transformers, names[0], AutoModel).from_pretrained(
            str(folder), dtype="auto", output_loading_info=True
        )
    except Exception as error:  # folders are broken in many ways, each with an error of its own
        raise DataError(f"{folder}: {' '.join(str(error).split())}") from error
    return model, set(told["missing_keys"])
