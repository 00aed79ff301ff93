from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from trainers.config import Objective
from trainers.errors import DataError
from trainers.model import require_documents_apart
from trainers.segments import (
    IGNORED_LABEL,
    Batch,
    Masking,
    causal_batch,
    hide_tokens,
    language_model_loss,
    masked_batch,
    model_inputs,
)

END, PAD, MASK, VOCAB = 0, 1, 2, 60
LENGTH = 24
MASKING = Masking(probability=0.3, mask_token=MASK, vocab_size=VOCAB)

# Of each sequence: filling; exactly full; one document; filling of one token.
DOCUMENTS = [[7, 9], [5, 17], [23], [3, 5, 12]]

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH + PAD + 1,  # RoBERTa's begin behind the padding token
}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH},
    "qwen3": {**COMMON, "num_key_value_heads": 2, "head_dim": 16},
    "gpt_neox": COMMON,
    "mistral": {**COMMON, "num_key_value_heads": 2, "sliding_window": 4},
}
MASKED: dict[str, dict[str, Any]] = {
    "bert": COMMON,
    "roberta": COMMON,
    # One layer that sees all and one that sees two tokens to either side.
    "modernbert": {**COMMON, "local_attention": 4, "global_attn_every_n_layers": 2},
}
FAMILIES = [*CAUSAL, *MASKED]


def build(family: str, attention: str | None = None) -> PreTrainedModel:
    """A tiny model without dropout whose attention matters: its weights are large."""
    torch.manual_seed(0)
    tokens = {"vocab_size": VOCAB, "bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
    settings = CAUSAL.get(family) or MASKED.get(family) or COMMON
    config = AutoConfig.for_model(family, **settings, **tokens)
    config.use_cache = False
    head = AutoModelForMaskedLM if objective_of(family) == "masked" else AutoModelForCausalLM
    model: PreTrainedModel = head.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def objective_of(family: str) -> Objective:
    return "masked" if family in [*MASKED, "deberta-v2", "convbert"] else "causal"


def packed_ids(seed: int = 0) -> Tensor:
    """All of DOCUMENTS in sequences, as the rule of segments has it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(DOCUMENTS), LENGTH), END)
    for row, start, stop in places():
        drawn = torch.randint(MASK + 1, VOCAB, (stop - start - 1,), generator=generator)
        ids[row, start + 1 : stop] = drawn
    return ids


def places() -> list[tuple[int, int, int]]:
    """Row, start and stop of each segment."""
    found = []
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for length in lengths:
            found.append((row, start, start + length + 1))
            start += length + 1
    return found


def batch_of(family: str, ids: Tensor) -> Batch:
    if objective_of(family) == "causal":
        return causal_batch(ids, END)
    return masked_batch(ids, range(len(ids)), MASKING, 0, END)


def token_losses(logits: Tensor, labels: Tensor, family: str) -> Tensor:
    """Per target, in order; nothing for labels that are ignored."""
    if objective_of(family) == "causal":
        logits, labels = logits[:-1], labels[1:]
    is_counted = labels != IGNORED_LABEL
    return cross_entropy(logits[is_counted], labels[is_counted], reduction="none")


def losses_of_documents_alone(model: PreTrainedModel, family: str, batch: Batch) -> Tensor:
    """Of each [END d1 .. dn END] fed by itself; masked: of [END d1 .. dn] with the same masks."""
    losses = []
    for row, start, stop in places():
        is_causal = objective_of(family) == "causal"
        # A document that ends with its sequence has no place to predict its end at.
        part = slice(start, min(stop + 1, LENGTH) if is_causal else stop)
        ids, labels = batch["input_ids"][row, part], batch["labels"][row, part]
        losses.append(token_losses(model(input_ids=ids[None]).logits[0], labels, family))
    return torch.cat(losses)


def packed_losses(model: PreTrainedModel, family: str, batch: Batch) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**model_inputs(model, inputs)).logits
    rows = zip(logits, batch["labels"], strict=True)
    return torch.cat([token_losses(own, labels, family) for own, labels in rows])


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_losses_and_gradients_they_have_alone(
    family: str, attention: str
) -> None:
    model, batch = build(family, attention), batch_of(family, packed_ids())
    alone = losses_of_documents_alone(model, family, batch)
    packed = packed_losses(model, family, batch)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    alone.sum().backward()  # type: ignore[no-untyped-call]
    expected = gradients(model)
    loss = language_model_loss(model, batch, targets_per_sequence=1)
    torch.testing.assert_close(loss, alone.sum() / len(DOCUMENTS), rtol=1e-5, atol=0)
    (loss * len(DOCUMENTS)).backward()  # type: ignore[no-untyped-call]
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (found[name] - gradient).abs().max()
        assert difference <= 1e-4 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("family", FAMILIES)
def test_changed_document_changes_no_logits_but_its_own(family: str) -> None:
    model, ids = build(family), packed_ids()
    row, start, stop = places()[0]
    changed = ids.clone()
    changed[row, start + 1 : stop] = ids[row, start + 1 : stop].roll(1)

    def logits(of: Tensor) -> Tensor:
        batch = batch_of(family, of) | {"input_ids": of}
        del batch["labels"]
        with torch.no_grad():
            found: Tensor = model(**model_inputs(model, batch)).logits
        return found

    differs = (logits(ids) != logits(changed)).any(-1)
    assert differs[row, start + 2 : stop].all()
    differs[row, start:stop] = False
    assert not differs.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_filling_has_no_influence(family: str) -> None:
    model, ids = build(family), packed_ids()[:1]
    batch = batch_of(family, ids)
    used = sum(DOCUMENTS[0]) + len(DOCUMENTS[0]) + 1  # with the end of the last document
    shorter = {name: tensor[:, :used] for name, tensor in batch.items()}
    found, expected = (packed_losses(model, family, of) for of in (batch, shorter))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("family", ["llama", "bert", "modernbert"])
def test_gradient_does_not_depend_on_how_a_batch_is_cut(family: str, size: int) -> None:
    model, batch = build(family), batch_of(family, packed_ids())
    language_model_loss(model, batch, 20.0).backward()  # type: ignore[no-untyped-call]
    expected = gradients(model)
    for start in range(0, len(DOCUMENTS), size):
        micro = {name: tensor[start : start + size] for name, tensor in batch.items()}
        loss = language_model_loss(model, micro, 20.0) * size / len(DOCUMENTS)
        loss.backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_without_a_number_is_the_models_own_mean(family: str) -> None:
    model, ids = build(family), packed_ids()
    batch = {"input_ids": ids, "labels": ids}
    assert torch.equal(language_model_loss(model, batch), model(**batch).loss)


def test_wrapped_model_has_the_same_loss() -> None:
    model = build("modernbert")
    batch = batch_of("modernbert", packed_ids())
    wrapped = nn.DataParallel(model)  # as DeepSpeed's engine, it has the model in `module`
    found, expected = (language_model_loss(module, batch, 1) for module in (wrapped, model))
    assert torch.equal(found, expected)


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=4))
def test_batch_follows_the_rule_of_segments(rows: list[list[int]]) -> None:
    ids = torch.tensor(rows)
    ids[:, 0] = END
    batch = masked_batch(ids, range(len(ids)), MASKING, 0, END) | causal_batch(ids, END)
    for row, tokens in enumerate(ids.tolist()):
        segment, position = 0, 0
        for index, token in enumerate(tokens):
            segment, position = (segment + 1, 0) if token == END else (segment, position + 1)
            assert batch["segments"][row, index] == segment
            assert batch["position_ids"][row, index] == position
            is_filling = index == 0 or (token == END and tokens[index - 1] == END)
            assert batch["labels"][row, index] == (IGNORED_LABEL if is_filling else token)


def test_each_sequence_hides_its_share_of_document_tokens_and_no_end() -> None:
    ids = packed_ids()
    batch = masked_batch(ids, range(4), MASKING, 0, END)
    is_hidden = batch["labels"] != IGNORED_LABEL
    assert is_hidden.sum(1).tolist() == [5, 7, 7, 6]  # of 16, 22, 23 and 20
    assert torch.equal(batch["labels"][is_hidden], ids[is_hidden])
    assert not (is_hidden & (ids == END)).any()
    assert torch.equal(batch["input_ids"][~is_hidden], ids[~is_hidden])


def test_masks_follow_from_seed_and_position_alone() -> None:
    ids = packed_ids()
    whole = masked_batch(ids, range(4), MASKING, 0, END)
    for part in (slice(0, 1), slice(1, 4)):
        found = masked_batch(ids[part], range(4)[part], MASKING, 0, END)
        assert all(torch.equal(found[name], whole[name][part]) for name in whole)
    for other in (
        masked_batch(ids, range(1, 5), MASKING, 0, END),
        masked_batch(ids, range(4), MASKING, 1, END),
    ):
        assert not torch.equal(other["labels"], whole["labels"])


def test_masks_are_those_of_earlier_releases() -> None:
    """Else a resumed training would go on with others."""
    ids = torch.arange(3, 23)[None]
    batch = hide_tokens(ids, torch.ones_like(ids, dtype=torch.bool), [7], MASKING, 5)
    hidden = (batch["labels"][0] != IGNORED_LABEL).nonzero().squeeze(1)
    assert hidden.tolist() == [2, 3, 4, 5, 18, 19]
    assert batch["input_ids"][0, hidden].tolist() == [2, 2, 2, 6, 2, 2]


def require(family: str, model: PreTrainedModel) -> None:
    require_documents_apart(
        model,
        objective_of(family),
        end_token=END,
        vocab_size=VOCAB,
        sequence_length=LENGTH,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_model_that_keeps_documents_apart_is_accepted_and_left_as_it_was(family: str) -> None:
    model = build(family).train()

    def draw(*_: object) -> None:
        torch.rand(1)

    model.register_forward_pre_hook(draw)  # as some families do, even where nothing is dropped
    state = torch.random.get_rng_state()
    require(family, model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "family", ["bloom", "mpt", "mamba", "rwkv", "opt", "bert_causal", "deberta-v2", "convbert"]
)
def test_model_that_lets_documents_mix_is_refused_with_a_way_out(family: str) -> None:
    model = build("bert" if family == "bert_causal" else family).train()
    name = family.removesuffix("_causal")
    with pytest.raises(DataError, match=rf"family {name} does not .*pretrain\.packing: concat"):
        require(family, model)
    assert model.training


def test_decoder_with_a_cache_is_refused() -> None:
    """Transformers looks for documents in positions only where there is no cache."""
    model = build("llama")
    model.config.use_cache = True
    with pytest.raises(DataError, match="family llama does not keep"):
        require("llama", model)


def test_failure_that_is_not_about_packing_is_not_blamed_on_it() -> None:
    model = build("gpt2")
    with pytest.raises(IndexError):
        require_documents_apart(
            model, "causal", end_token=END, vocab_size=VOCAB, sequence_length=LENGTH + 1
        )
