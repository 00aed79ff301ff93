import re

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from trainers import optim
from trainers.config import ScheduleConfig


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


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("cosine", 0, 0.1),
        ("cosine", 9, 1.0),
        ("cosine", 55, 0.5),
        ("cosine", 100, 0.0),
        ("linear", 9, 1.0),
        ("linear", 55, 0.5),
        ("linear", 100, 0.0),
        ("cosine", 99, 0.0003),
        ("linear", 99, 0.0111),
        ("constant", 4, 0.5),
        ("constant", 99, 1.0),
    ],
)
def test_schedule_warms_up_and_then_takes_its_shape(name: str, step: int, expected: float) -> None:
    config = ScheduleConfig(name=name, warmup=0.1)  # type: ignore[arg-type]
    assert optim.schedule(config, peak=1.0, total_steps=100)(step) == pytest.approx(
        expected, abs=1e-4
    )


def test_schedule_ends_at_its_floor() -> None:
    config = ScheduleConfig(name="linear", warmup=0.0, floor=0.25)
    assert optim.schedule(config, peak=2.0, total_steps=10)(10) == pytest.approx(0.5)


def names_of(network: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in network.named_parameters() if id(parameter) in wanted}


def test_matrices_decay_and_nothing_else(network: LlamaForCausalLM) -> None:
    groups = optim.adamw(
        network, learning_rate=1.0, weight_decay=0.5, betas=(0.9, 0.95)
    ).param_groups
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.5 if parameter.dim() >= 2 else 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


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
    from trainers.engine import muon

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
