"""Words are hidden whole: which tokens make a word, and which words are hidden."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from worlds import Reports, moved, prepare, run

from trainers import segments, tokenizer, whole_words
from trainers.batches import to_batch
from trainers.config import ModelConfig, TokenizerConfig
from trainers.errors import DataError
from trainers.segments import IGNORED_LABEL, Masking
from trainers.whole_words import WordBounds

END, MASK, VOCAB = 0, 2, 40
# Tokens 3 to 9 begin words, the others continue them.
BOUNDS = WordBounds(
    begins=np.array([n < 10 for n in range(VOCAB)]), ends=np.array([n < 3 for n in range(VOCAB)])
)
TEXT = "Unbelievable internationalisation, isn't it?\nNewlines\tpart words"


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def loaded(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    config = TokenizerConfig(train=request.param, vocab_size=400)
    return tokenizer.build(config, Path(), [" ".join(WORDS), TEXT], 64)


def words_of(loaded: PreTrainedTokenizerFast, text: str) -> list[str]:
    """Texts of the words that the tokens of `text` make."""
    bounds = whole_words.word_bounds(loaded)
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    words: list[list[int]] = []
    for place, token in enumerate(ids):
        if place == 0 or bounds.begins[token] or bounds.ends[ids[place - 1]]:
            words.append([])
        words[-1].append(token)
    return [text for word in words if (text := loaded.decode(word).strip())]


def test_tokens_show_the_words_of_a_text(loaded: PreTrainedTokenizerFast) -> None:
    text = "unbelievable words newlines internationalisation part"
    assert words_of(loaded, text) == text.split()
    assert max(map(len, map(loaded.tokenize, text.split()))) > 2  # some words are several tokens


def test_white_space_of_every_kind_parts_words(loaded: PreTrainedTokenizerFast) -> None:
    assert words_of(loaded, "words\nnewlines\tpart") == ["words", "newlines", "part"]


def test_special_tokens_are_words_of_their_own(loaded: PreTrainedTokenizerFast) -> None:
    bounds = whole_words.word_bounds(loaded)
    assert bounds.begins[loaded.all_special_ids].all()
    assert bounds.ends[loaded.all_special_ids].all()
    assert len(bounds.begins) == len(bounds.ends) == len(loaded)


def test_tokens_that_show_no_words_are_refused() -> None:
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match=r"whole_words: .* do not show where words begin"):
        whole_words.word_bounds(PreTrainedTokenizerFast(tokenizer_object=plain))


def numbers_of_words(ids: Tensor) -> list[list[int]]:
    """The number of each token's word, by the definition."""
    found = []
    for row in ids.tolist():
        number, numbers = 0, []
        for place, token in enumerate(row):
            if place and (BOUNDS.begins[token] or BOUNDS.ends[row[place - 1]]):
                number += 1
            numbers.append(number)
        found.append(numbers)
    return found


def sequences(length: int) -> st.SearchStrategy[Tensor]:
    row = st.lists(st.integers(3, VOCAB - 1) | st.just(END), min_size=length, max_size=length)
    return st.lists(row, min_size=1, max_size=4).map(torch.tensor)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@settings(max_examples=60, deadline=None)
@given(ids=sequences(24), probability=st.sampled_from([0.15, 0.4]), seed=st.integers(0, 9))
def test_word_is_hidden_wholly_or_not_at_all(
    packing: str, ids: Tensor, probability: float, seed: int
) -> None:
    masking = Masking(probability, MASK, VOCAB, BOUNDS)
    batch = to_batch(
        ids,
        range(3, 3 + len(ids)),
        packing=packing,  # type: ignore[arg-type]
        end_token=END,
        masking=masking,
        seed=seed,
    )
    hidden = batch["labels"] != IGNORED_LABEL
    assert torch.equal(batch["labels"][hidden], ids[hidden])
    assert torch.equal(batch["input_ids"][~hidden], ids[~hidden])
    may_be_hidden = ids != END if packing == "best_fit" else torch.ones_like(hidden)
    assert not (hidden & ~may_be_hidden).any()
    for row, numbers in enumerate(numbers_of_words(ids)):
        words = [(torch.tensor(numbers) == n) & may_be_hidden[row] for n in range(max(numbers) + 1)]
        words = [word for word in words if word.any()]
        taken = [word for word in words if hidden[row][word].any()]
        assert all(hidden[row][word].all() for word in taken)
        wanted = max(1, round(probability * int(may_be_hidden[row].sum())))
        if not words:
            continue
        # The share is reached by the last word, without which it would not be.
        assert wanted <= hidden[row].sum() < wanted + max(int(word.sum()) for word in taken)


def test_share_of_hidden_tokens_is_near_the_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (64, 512), generator=generator)  # words of five tokens
    everything = torch.ones_like(ids, dtype=torch.bool)
    masking = Masking(0.15, MASK, VOCAB, BOUNDS)
    batch = segments.hide_tokens(ids, everything, range(64), masking, 0)
    hidden = batch["labels"] != IGNORED_LABEL
    assert float(hidden.float().mean()) == pytest.approx(0.155, abs=0.006)
    fates = batch["input_ids"][hidden]
    assert float((fates == MASK).float().mean()) == pytest.approx(0.8, abs=0.03)
    # Each token has a fate of its own: words are not all mask or all kept.
    words = torch.tensor(numbers_of_words(ids))
    mixed = [
        len(set((batch["input_ids"][row] == MASK)[(words[row] == number) & hidden[row]].tolist()))
        for row in range(8)
        for number in words[row][hidden[row]].unique().tolist()
    ]
    assert 2 in mixed


def test_hidden_words_follow_from_seed_and_position_alone() -> None:
    ids = torch.randint(3, VOCAB, (6, 24), generator=torch.Generator().manual_seed(0))
    everything = torch.ones_like(ids, dtype=torch.bool)
    masking = Masking(0.3, MASK, VOCAB, BOUNDS)
    whole = segments.hide_tokens(ids, everything, range(6), masking, 0)
    for size in (1, 2, 4):
        for start in range(0, 6, size):
            part = slice(start, start + size)
            found = segments.hide_tokens(ids[part], everything[part], range(6)[part], masking, 0)
            assert all(torch.equal(found[name], whole[name][part]) for name in whole)
    other = segments.hide_tokens(ids, everything, range(6), masking, 1)
    assert not torch.equal(other["labels"], whole["labels"])


def test_whole_words_train_and_are_other_than_tokens(tmp_path: Path) -> None:
    bert = ModelConfig(
        objective="masked",
        architecture="bert",
        config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    )
    work = replace(prepare(tmp_path / "world"), model=bert)
    words = run(moved(work, tmp_path / "words", whole_words=True), Reports()).losses
    tokens = run(moved(work, tmp_path / "tokens"), Reports()).losses
    assert words[20] < words[1] - 0.3
    assert words[1] != tokens[1]
