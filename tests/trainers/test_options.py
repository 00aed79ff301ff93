"""Options that change only speed or memory: each acts, is refused, or warns."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from worlds import LENGTH, Reports, moved, prepare, pretrain_config, run

from trainers import bases, model, options, segments, tokenizer
from trainers.config import ModelConfig
from trainers.errors import DataError
from trainers.pretrain import PretrainWork

FEW_TOKENS = 4 * 8 * LENGTH


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return prepare(tmp_path_factory.mktemp("options"))


def build(work: PretrainWork, **settings: Any) -> model.PreTrainedModel:
    loaded = tokenizer.load(work.tokenizer)
    return model.for_pretraining(work.model, work.base, loaded, LENGTH, 0, **settings)


def kept_bytes(network: model.PreTrainedModel) -> int:
    """Of the activations that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    ids = torch.arange(3, 3 + LENGTH)[None].expand(4, -1).contiguous()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        segments.language_model_loss(network.train(), {"input_ids": ids, "labels": ids})
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    return sum(size for place, size in kept.items() if place not in weights)


def test_activation_checkpointing_keeps_less(work: PretrainWork) -> None:
    network = build(work)
    before = kept_bytes(network)
    options.prepare_model(network, moved(work, work.base).pretrain)
    assert kept_bytes(network) == before
    config = work.pretrain.model_copy(update={"activation_checkpointing": True})
    options.prepare_model(network, config)
    assert kept_bytes(network) < before / 2


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_activation_checkpointing_changes_no_loss(
    work: PretrainWork, tmp_path: Path, family: str
) -> None:
    """Not even where dropout draws: it draws the same again."""
    dropout = {"attention_dropout": 0.2} if family == "llama" else {"hidden_dropout_prob": 0.2}
    config = {**work.model.config, **dropout}
    objective = "causal" if family == "llama" else "masked"
    work = replace(
        work,
        model=ModelConfig(objective=objective, architecture=family, config=config),  # type: ignore[arg-type]
    )
    plain = run(moved(work, tmp_path / "a", tokens=FEW_TOKENS), Reports()).losses
    settings = {"tokens": FEW_TOKENS, "activation_checkpointing": True}
    assert run(moved(work, tmp_path / "b", **settings), Reports()).losses == plain


def test_family_without_activation_checkpointing_is_refused_by_name() -> None:
    class Without(LlamaForCausalLM):
        supports_gradient_checkpointing = False

    network = Without(
        LlamaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    config = pretrain_config(activation_checkpointing=True)
    with pytest.raises(DataError, match="activation_checkpointing: the family llama of"):
        options.prepare_model(network, config)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_the_stated_one_and_changes_only_rounding(
    work: PretrainWork, tmp_path: Path, attention: Any
) -> None:
    assert build(work, attention=attention).config._attn_implementation == attention
    plain = run(moved(work, tmp_path / "a", tokens=FEW_TOKENS), Reports()).losses
    settings = {"tokens": FEW_TOKENS, "attention": attention}
    found = run(moved(work, tmp_path / "b", **settings), Reports()).losses
    assert found == pytest.approx(plain, abs=1e-5)
    exported = json.loads((tmp_path / "b" / "output" / "config.json").read_text())
    assert not any("attn_impl" in key for key in exported)


def test_attention_of_a_loaded_model_is_the_stated_one(work: PretrainWork, tmp_path: Path) -> None:
    built = build(work)
    loaded = tokenizer.load(work.tokenizer)
    model.export(tmp_path / "base", built, dict(built.named_parameters()), loaded)
    config = ModelConfig.model_validate({"from": "base"})
    again = model.for_pretraining(config, tmp_path, loaded, LENGTH, 0, attention="eager")
    assert again.config._attn_implementation == "eager"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_needs_a_gpu_is_refused_on_a_cpu(
    work: PretrainWork, tmp_path: Path, attention: str
) -> None:
    with pytest.raises(DataError, match=rf"attention: {attention} needs a GPU; set sdpa") as caught:
        run(moved(work, tmp_path, attention=attention), Reports())
    assert "\n" not in str(caught.value)


def test_attention_that_a_family_lacks_is_refused_in_one_line(work: PretrainWork) -> None:
    config = ModelConfig(architecture="gpt2", config={"n_embd": 32, "n_layer": 1, "n_head": 2})
    loaded = tokenizer.load(work.tokenizer)
    with pytest.raises(DataError, match=r"model: gpt2 .* does not support .* flex_att") as caught:
        model.for_pretraining(config, work.base, loaded, LENGTH, 0, attention="flex_attention")
    assert "\n" not in str(caught.value)


def test_packing_that_flash_attention_cannot_be_proven_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flash_attention_2 goes with packing: concat"):
        pretrain_config(attention="flash_attention_2", packing="best_fit")


COMPILED = """
import json, sys
from pathlib import Path
from worlds import LENGTH, Reports, moved, prepare, run
import torch._dynamo.utils as dynamo
folder = Path(sys.argv[1])
work = prepare(folder / "world")
settings = {"tokens": 4 * 8 * LENGTH}
plain = run(moved(work, folder / "plain", **settings), Reports()).losses
assert not dynamo.counters["stats"], dynamo.counters
found = run(moved(work, folder / "compiled", compile=True, **settings), Reports()).losses
graphs = dynamo.counters["stats"]["unique_graphs"]
print(json.dumps([list(plain.values()), list(found.values()), graphs]))
"""


@pytest.mark.slow
def test_compiled_network_has_the_losses_and_names_of_a_plain_one(tmp_path: Path) -> None:
    environment = {key: v for key, v in os.environ.items() if key != "TORCHDYNAMO_DISABLE"}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path)],
        env=environment | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain, found, graphs = json.loads(done.stdout.splitlines()[-1])
    assert graphs >= 1
    assert found == pytest.approx(plain, abs=1e-4)
    _, names = bases.weights_of(tmp_path / "compiled" / "output")
    _, expected = bases.weights_of(tmp_path / "plain" / "output")
    assert names.keys() == expected.keys()


@pytest.mark.parametrize(
    ("is_off", "reason"),
    [(True, "several workers or with muon"), (False, "needs a C++ compiler")],
)
def test_compiling_where_it_has_no_effect_warns(
    work: PretrainWork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_off: bool,
    reason: str,
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1" if is_off else "0")
    no_compiler = inductor.patch({"cpp.cxx": ("/nonexistent",)})
    with caplog.at_level(logging.WARNING), no_compiler:
        losses = run(moved(work, tmp_path, compile=True, tokens=FEW_TOKENS), Reports()).losses
    assert len(losses) == 4
    assert any("compile has no effect here" in m and reason in m for m in caplog.messages)
