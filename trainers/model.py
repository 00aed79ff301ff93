"""`transformers` models: from a configuration or a checkpoint, per objective and per task."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from trainers import segments
from trainers.config import POSITION_FIELDS, ModelConfig, Objective
from trainers.errors import DataError
from trainers.pretrain_config import Attention

logger = logging.getLogger(__name__)

# A bar for each file read or written says nothing in a log and disturbs a terminal.
disable_progress_bar()

_HEAD_OF_OBJECTIVE = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}


class Construction(Protocol):
    """How the modules of a model come to be: spread over ranks, for example."""

    def new(self, build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """What `build` makes, with random weights."""

    def existing(self, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """What `load` makes, with the weights it reads."""


def for_pretraining(
    config: ModelConfig,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    seed: int,
    *,
    attention: Attention | None = None,
    construction: Construction | None = None,
) -> PreTrainedModel:
    """The model to pretrain: new from its configuration, or an existing one to go on with.

    Args:
        config: the user's section.
        base: folder of the pipeline file, for `model.from`.
        tokenizer: of the tokens it will see.
        sequence_length: of training.
        seed: of new weights, of an existing model its head's where its files lack one.
        attention: how attention is computed; None is what `transformers` takes.
        construction: how modules come to be; None makes them whole in this process.

    Raises:
        DataError: the configuration does not describe a model that fits tokenizer and sequences.
    """
    if config.from_:
        model = _existing_model(config, base, seed, attention, construction)
    else:
        model = _new_model(config, tokenizer, sequence_length, seed, attention, construction)
    network = model.config
    if config.objective == "causal":
        require_left_to_right(network)
    if network.vocab_size < len(tokenizer):
        raise DataError(
            f"the model's vocabulary ({network.vocab_size}) is smaller than the tokenizer's "
            f"({len(tokenizer)}); use the model's own tokenizer: tokenizer.from"
        )
    first = segments.first_position(model)
    positions = getattr(network, "max_position_embeddings", first + sequence_length) - first
    if sequence_length > positions:
        raise DataError(
            f"pretrain.sequence_length {sequence_length} is longer than the model's {positions} "
            f"positions{positions_not_used(first)}; lower it"
        )
    if hasattr(network, "use_cache"):
        network.use_cache = False  # a cache of keys and values is for generation
    return model


def require_documents_apart(
    model: PreTrainedModel,
    objective: Objective,
    *,
    end_token: int,
    vocab_size: int,
    sequence_length: int,
) -> None:
    """Prove that a document's logits in a packed sequence are those of the document alone.

    Two sequences, because some attention kernels keep documents apart only in batches of one; as
    long as in training, because some layers see a window or switch their pattern with the length;
    a short document beside a long one, because a leak is small where it is averaged over many
    tokens. Leaves training mode and random state as they were.

    Raises:
        DataError: this model, with the library that runs it, lets documents attend to others.
    """
    ids, documents = _documents_to_pack(model, end_token, vocab_size, sequence_length)
    was_training = model.training
    model.eval()
    try:
        logits, alone = _logits_packed_alone(model, objective, end_token, ids, documents)
    finally:
        model.train(was_training)
    pairs = zip(documents, alone, strict=True)
    leaks = torch.stack([(logits[row, part] - own).abs().max() for (row, part), own in pairs])
    scale = torch.stack([own.abs().max() for own in alone])
    # Rounding leaves 1e-6 of the largest logit, a leak in a fresh model 1e-3 and more.
    if not leaks.max() <= 1e-4 * scale.max():  # NaN is refused, too
        raise _not_apart(model, f"beside others a document's logits differ by {leaks.max():.1g}")


def load(folder: Path, objective: Objective) -> PreTrainedModel:
    """A pretrained model in fp32, with the head of its objective.

    Raises:
        DataError: the folder lacks weights, such as those of the head.
    """
    loaded: PreTrainedModel
    loaded, told = _HEAD_OF_OBJECTIVE[objective].from_pretrained(
        str(folder),
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if told["missing_keys"]:
        raise DataError(
            f"{folder}: its files lack weights of a model with objective: {objective}, first "
            f"{min(told['missing_keys'])}; pretrain.promote: null asks for none"
        )
    return loaded


def require_left_to_right(network: PreTrainedConfig) -> None:
    """Raise where a token sees the next one, which it is to predict.

    Raises:
        DataError: so it is.
    """
    is_decoder = getattr(network, "is_decoder", False) or getattr(network, "causal", False)
    if network.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder:
        raise DataError(
            f"{network.model_type} sees the tokens that it is to predict with objective: causal; "
            "take objective: masked, or a decoder"
        )


def export(
    directory: Path,
    model: PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write a Hugging Face folder: config, `model.safetensors`, tokenizer.

    Args:
        directory: an empty folder.
        model: of the class to export; only its class and configuration count.
        weights: whole parameters by name, tied ones once.
        tokenizer: goes beside the model.
    """
    whole = type(model)(model.config).float()
    if hasattr(whole.config, "use_cache"):
        whole.config.use_cache = True
    missing, unexpected = whole.load_state_dict(dict(weights), strict=False)
    whole.tie_weights()
    buffers = {name for name, _ in whole.named_buffers()}
    tied = {name for name, _ in whole.named_parameters(remove_duplicate=False)} - {
        name for name, _ in whole.named_parameters()
    }
    assert not unexpected, unexpected
    assert set(missing) <= buffers | tied, missing
    whole.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


def _existing_model(
    config: ModelConfig,
    base: Path,
    seed: int,
    attention: Attention | None,
    construction: Construction | None,
) -> PreTrainedModel:
    folder = str(base / str(config.from_))
    missing: list[str] = []

    def load() -> PreTrainedModel:
        torch.manual_seed(seed)  # of a head that the files lack
        found, told = _HEAD_OF_OBJECTIVE[config.objective].from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
        )
        missing.extend(sorted(told["missing_keys"]))
        network: PreTrainedModel = found
        return network

    try:
        model = construction.existing(load) if construction else load()
    except (ImportError, OSError, ValueError) as error:
        raise DataError(f"model.from: {folder}: {_in_one_line(error)}") from error
    lacking = [name for name in missing if is_of_backbone(model, name)]
    if lacking:
        raise DataError(
            f"model.from: {folder}: its files lack {len(lacking)} weights of a "
            f"{model.config.model_type}, first {lacking[0]}"
        )
    if missing:
        told = f"{len(missing)} weights that its files lack, first {missing[0]}"
        logger.warning("model.from: %s: the head is new: %s", folder, told)
    return model


def is_of_backbone(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight is of what tasks share; heads and poolers are made anew for each."""
    is_bare = model is model.base_model
    is_inside = is_bare or name.startswith(f"{model.base_model_prefix}.")
    return is_inside and ".pooler." not in f".{name}."


def _new_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    seed: int,
    attention: Attention | None,
    construction: Construction | None,
) -> PreTrainedModel:
    is_stated = any(field in config.config for field in POSITION_FIELDS)

    def build(positions: int) -> PreTrainedModel:
        settings = {
            # Beside `n_positions` transformers would let this one win.
            **({} if is_stated else {"max_position_embeddings": positions}),
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **config.config,
        }
        network = AutoConfig.for_model(config.architecture, **settings)
        torch.manual_seed(seed)
        head = _HEAD_OF_OBJECTIVE[config.objective]
        make = partial(head.from_config, network, attn_implementation=attention)
        model: PreTrainedModel = construction.new(make) if construction else make()
        return model

    try:
        model = build(sequence_length)
        first = segments.first_position(model)
        return build(first + sequence_length) if first and not is_stated else model
    except Exception as error:  # families complain in many ways, all about what the user wrote
        raise DataError(
            f"model: {config.architecture} with {config.config}: {_in_one_line(error)}"
        ) from error


def positions_not_used(first: int) -> str:
    """What to add to an error about positions, where a family keeps some to itself."""
    return f" (the first {first} of its max_position_embeddings are not used)" if first else ""


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _logits_packed_alone(
    model: PreTrainedModel,
    objective: Objective,
    end_token: int,
    ids: torch.Tensor,
    documents: Sequence[tuple[int, slice]],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of packed sequences, and those of each of their documents by itself."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        model(input_ids=ids[:1])  # what fails here has nothing to do with packing
        try:
            packed = segments.packed_inputs(ids, objective, end_token)
            logits = model(**segments.model_inputs(model, packed)).logits
        except Exception as error:  # families complain in many ways, all about positions or mask
            raise _not_apart(model, f"{type(error).__name__}: {error}") from error
        # Last, because BigBird gives up its pattern for good at the first short document.
        alone = [model(input_ids=ids[row : row + 1, part]).logits[0] for row, part in documents]
    return logits, alone


def _not_apart(model: PreTrainedModel, reason: str) -> DataError:
    return DataError(
        f"a model of the family {model.config.model_type} does not keep the documents of a packed "
        f"sequence apart ({reason}); set pretrain.packing: concat"
    )


def _documents_to_pack(
    model: PreTrainedModel, end_token: int, vocab_size: int, sequence_length: int
) -> tuple[torch.Tensor, list[tuple[int, slice]]]:
    """Two packed sequences of random documents, and where (row, part) the documents are."""
    # RoBERTa and its kin count no positions for padding tokens.
    special = (end_token, getattr(model.config, "pad_token_id", None))
    ordinary = torch.tensor([token for token in range(vocab_size) if token not in special])
    drawn = torch.randint(
        len(ordinary), (2, sequence_length), generator=torch.Generator().manual_seed(0)
    )
    ids = ordinary[drawn]
    seconds, filling = (3, sequence_length // 2), sequence_length - 2
    ids[:, 0] = ids[:, filling:] = end_token
    documents = []
    for row, second in enumerate(seconds):
        ids[row, second] = end_token
        documents += [(row, slice(0, second)), (row, slice(second, filling))]
    return ids.to(model.device), documents
