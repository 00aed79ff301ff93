import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from trainers import optim

HIDDEN = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def network() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def names_of(network: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in network.named_parameters() if id(parameter) in wanted}


def decays(network: nn.Module, groups: list[dict[str, Any]]) -> dict[str, float]:
    """Weight decay by name of parameter."""
    return {
        name: group["weight_decay"]
        for group in groups
        for name in names_of(network, group["params"])
    }


@pytest.mark.parametrize(
    ("family", "head", "config", "expected"),
    [
        ("llama", AutoModelForCausalLM, HIDDEN, r"proj|lm_head"),
        ("llama", AutoModelForCausalLM, {**HIDDEN, "tie_word_embeddings": True}, r"proj"),
        ("gpt2", AutoModelForCausalLM, {"n_embd": 16, "n_layer": 2, "n_head": 2}, r"\.c_"),
        ("bert", AutoModelForMaskedLM, HIDDEN, r"(query|key|value|dense)$"),
        ("modernbert", AutoModelForMaskedLM, HIDDEN, r"(W.*|dense)$"),
        (
            "bert",
            AutoModelForSequenceClassification,
            HIDDEN,
            r"(query|key|value|dense|classifier)$",
        ),
    ],
)
def test_matrices_decay_but_norms_biases_and_embeddings_do_not(
    family: str, head: Any, config: dict[str, Any], expected: str
) -> None:
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0}
    network = head.from_config(
        AutoConfig.for_model(family, vocab_size=32, sep_token_id=0, **special, **config)
    )
    adamw = optim.adamw(network, learning_rate=1.0, weight_decay=0.5, betas=(0.9, 0.95))
    found = decays(network, adamw.param_groups)
    wanted = {
        name: 0.5
        if name.endswith("weight")
        and re.search(expected, name.removesuffix(".weight"))
        and "LayerNorm" not in name
        else 0.0
        for name, _ in network.named_parameters()
    }
    assert found == wanted
    assert {0.0, 0.5} == set(found.values())
    muon = optim.muon_groups(network, learning_rate=1.0, weight_decay=0.5, betas=(0.9, 0.95))
    assert decays(network, muon) == wanted


def test_parameters_that_zero_3_has_emptied_decay_as_whole_ones_do(
    network: LlamaForCausalLM,
) -> None:
    settings: dict[str, Any] = {"learning_rate": 1.0, "weight_decay": 0.5, "betas": (0.9, 0.95)}
    whole = decays(network, optim.adamw(network, **settings).param_groups)
    whole_of_muon = optim.muon_groups(network, **settings)
    expected = [(decays(network, [group]), group["scale"]) for group in whole_of_muon]
    for parameter in network.parameters():
        parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    assert decays(network, optim.adamw(network, **settings).param_groups) == whole
    emptied = optim.muon_groups(network, **settings)
    assert [(decays(network, [group]), group["scale"]) for group in emptied] == expected


def test_layer_decay_lowers_rates_from_the_head_down(network: LlamaForCausalLM) -> None:
    groups = optim.adamw(
        network, learning_rate=1.0, weight_decay=0.0, betas=(0.9, 0.95), layer_decay=0.5
    ).param_groups
    scales = {
        name: group["scale"] for group in groups for name in names_of(network, group["params"])
    }
    assert scales["lm_head.weight"] == scales["model.norm.weight"] == 1.0
    assert scales["model.layers.2.mlp.up_proj.weight"] == 0.5
    assert scales["model.layers.0.mlp.up_proj.weight"] == 0.125
    assert scales["model.embed_tokens.weight"] == 0.0625


@pytest.mark.parametrize(
    ("family", "config", "lowest", "highest"),
    [
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, r"\.(wte|wpe)\.", r"^score|\.ln_f\."),
        (
            "bert",
            {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
            | {"num_attention_heads": 2},
            r"\.embeddings\.",
            r"^classifier|\.pooler\.",
        ),
    ],
)
def test_layer_decay_orders_the_layers_of_every_family(
    family: str, config: dict[str, int], lowest: str, highest: str
) -> None:
    network = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(family, vocab_size=32, **config)
    )
    groups = optim.adamw(
        network, learning_rate=1.0, weight_decay=0.0, betas=(0.9, 0.95), layer_decay=0.5
    ).param_groups
    scales = {
        name: group["scale"] for group in groups for name in names_of(network, group["params"])
    }
    assert {name for name, scale in scales.items() if scale == 1.0} == {
        name for name in scales if re.search(highest, name)
    }
    assert {name for name, scale in scales.items() if scale == 0.125} == {
        name for name in scales if re.search(lowest, name)
    }
    assert {s for name, s in scales.items() if re.search(r"\.(h|layer)\.1\.", name)} == {0.5}
    assert {s for name, s in scales.items() if re.search(r"\.(h|layer)\.0\.", name)} == {0.25}


def test_frozen_parameters_are_in_no_group(network: LlamaForCausalLM) -> None:
    network.model.requires_grad_(False)
    groups = optim.adamw(
        network, learning_rate=1.0, weight_decay=0.0, betas=(0.9, 0.95)
    ).param_groups
    assert names_of(network, [p for group in groups for p in group["params"]]) == {"lm_head.weight"}


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(network: LlamaForCausalLM) -> None:
    groups = optim.muon_groups(network, learning_rate=1.0, weight_decay=0.1, betas=(0.9, 0.95))
    of_muon = [p for group in groups if group["use_muon"] for p in group["params"]]
    names = names_of(network, of_muon)
    assert len(names) == 3 * 7
    assert all(".layers." in name and name.endswith("proj.weight") for name in names)
    assert all(parameter.use_muon for parameter in of_muon)  # type: ignore[attr-defined]
    assert not network.lm_head.weight.use_muon
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_muon_update_has_the_size_of_an_adamw_update() -> None:
    """Root mean square of 0.2 per unit of learning rate, whatever the matrix' shape."""
    from trainers.deepspeed_setup import muon

    for shape in [(32, 32), (64, 32), (32, 96)]:
        linear = nn.Linear(shape[1], shape[0], bias=False)
        layers = nn.ModuleDict({"layers": nn.ModuleList([linear])})
        weight = linear.weight
        before = weight.detach().clone()
        groups = optim.muon_groups(layers, learning_rate=1.0, weight_decay=0.0, betas=(0.9, 0.95))
        optimizer = muon(groups, torch.device("cpu"))
        for group in optimizer.param_groups:
            group["lr"] = group["scale"]
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        change = (weight.detach() - before).square().mean().sqrt()
        assert 0.15 < float(change) < 0.25, shape
