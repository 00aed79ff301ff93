"""A model for a task: the base's weights below a new head, or that head alone."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from trainers import segments
from trainers.errors import DataError
from trainers.model import positions_not_used

Weights = Mapping[str, NDArray[Any]]


def build(
    network: Mapping[str, Any],
    weights: Weights | None,
    head: Any,
    *,
    dropout: float,
    seed: int,
    keeps_head: bool = False,
) -> PreTrainedModel:
    """A model with a new head on the weights of a base, or on random ones.

    A new head's weights follow from the seed and its own shape, whatever is below it.

    Args:
        network: the base's configuration, with what the task's type adds to it.
        weights: of the base by parameter name, its language-model head included; None is random.
        head: the class of `transformers` with the task's head.
        dropout: for every kind of dropout the family has.
        seed: of the head, and of all weights where `weights` is None.
        keeps_head: the task goes on with the base's own head.
    """
    config = _config_for(network, dropout)
    if weights is None:
        torch.manual_seed(seed)
        random: PreTrainedModel = head.from_config(config)
        return random
    model = _unfilled(config, head)
    _fill(model, seed, load_base(model, weights, keeps_head=keeps_head))
    return model


def build_head(
    network: Mapping[str, Any], weights: Weights, head: Any, *, dropout: float, seed: int
) -> PreTrainedModel:
    """The head of `build` alone: where its base was, the base's features are taken as they are.

    They are given as `inputs_embeds`, of shape (rows, length, hidden).
    """
    model = _unfilled(_config_for(network, dropout), head)
    take_features(model)
    _fill(model, seed, load_base(model, weights))
    return model


def take_features(model: PreTrainedModel) -> torch.nn.Module:
    """Put something that hands on features in the place of a model's base, which is returned."""
    base: torch.nn.Module = model.base_model
    setattr(model, model.base_model_prefix, _Features(getattr(base, "pooler", None)))
    return base


class _Features(torch.nn.Module):
    """In the place of a base: what it would say of these tokens is known."""

    def __init__(self, pooler: torch.nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(
        self, input_ids: Any = None, *, inputs_embeds: torch.Tensor, **_: Any
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """The features, and what the base's pooler, which is trained with the head, makes of it."""
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=inputs_embeds,
            pooler_output=None if self.pooler is None else self.pooler(inputs_embeds),
        )


def _config_for(network: Mapping[str, Any], dropout: float) -> Any:
    settings = dict(network)
    # Heads that find no dropout of their own in the configuration take 0.1.
    dropouts = ["classifier_dropout", *filter(_is_dropout, settings)]
    settings.update(dict.fromkeys(dropouts, dropout))
    settings["dtype"] = "float32"  # a base saved in bf16 would be tuned in bf16
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _unfilled(config: Any, head: Any) -> PreTrainedModel:
    """A model whose weights hold nothing yet: to draw them all takes longer than to copy them."""
    with no_init_weights():
        model: PreTrainedModel = head.from_config(config)
    model.tie_weights()
    return model


def _fill(model: PreTrainedModel, seed: int, known: set[str]) -> None:
    """Draw the weights that are not known, as the model's family does, and no others."""
    # As transformers marks what it loaded: some families draw for a part before they look at it.
    for name, part in model.named_modules():
        own = dict(part.named_parameters(prefix=name, recurse=False))
        for parameter in (own[place] for place in own if place in known):
            parameter._is_hf_initialized = True  # noqa: SLF001
        if own and set(own) <= known:
            part._is_hf_initialized = True  # noqa: SLF001
    torch.manual_seed(seed)
    model.initialize_weights()
    model.tie_weights()


def require_positions(network: Mapping[str, Any], head: Any, length: int) -> None:
    """Refuse texts that are longer than a base can read.

    Raises:
        DataError: says how long they may be.
    """
    settings = dict(network)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    try:
        with torch.device("meta"):
            first = segments.first_position(head.from_config(config))
    except ValueError as error:
        raise DataError(
            f"transformers has no {head.__name__.removeprefix('AutoModelFor')} for a base of the "
            f"family {config.model_type}; use another base or another type of task"
        ) from error
    positions = getattr(config, "max_position_embeddings", first + length) - first
    if length > positions:
        raise DataError(
            f"max_length {length} is longer than the base's {positions} "
            f"positions{positions_not_used(first)}; lower it"
        )


def load_base(model: PreTrainedModel, weights: Weights, *, keeps_head: bool = False) -> set[str]:
    """Copy a base's weights into a model, whose head is new unless `keeps_head`; their names.

    Raises:
        DataError: weights are missing.
    """
    inside = f"{model.base_model_prefix}."
    own = model.state_dict()
    has_prefix = any(name.startswith(inside) for name in weights)
    shared = {
        place: torch.from_numpy(array)
        for name, array in weights.items()
        # Saved without any head, names have no prefix; with some heads, another one.
        for place in ({name} if has_prefix else {name, inside + name, inside + _tail(name)})
        if place in own and (keeps_head or place.startswith(inside))
    }
    tied = set(own) - {name for name, _ in model.named_parameters()}
    needed = set(own) - tied if keeps_head else {n for n in own if not is_of_head(model, n)}
    missing = sorted(needed - set(shared))
    if missing:
        raise DataError(f"the base lacks {len(missing)} weights of this model, first {missing[0]}")
    model.load_state_dict(shared, strict=False)
    return set(shared) | tied


def _tail(name: str) -> str:
    """A weight's name without the prefix of its model."""
    return name.partition(".")[2]


def is_of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a part or parameter is new for the task; language models are trained without pooler.

    Args:
        model: of a task.
        name: of the part in the model.
    """
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in f"{name}."


def reads_left_to_right(network: Mapping[str, Any]) -> bool:
    """Whether a token's features know nothing of what follows it."""
    return network["model_type"] not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _is_dropout(name: str) -> bool:
    return name.endswith(("dropout", "dropout_prob", "_pdrop"))
