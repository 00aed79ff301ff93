from pathlib import Path

import pytest
from conftest import WORDS
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from trainers import tokenizer
from trainers.config import TokenizerConfig
from trainers.errors import DataError

TEXTS = [" ".join(WORDS[start : start + 20]) for start in range(0, 4000, 20)]


def build(folder: Path = Path(), **settings: object) -> PreTrainedTokenizerFast:
    config = TokenizerConfig.model_validate({"train": "bpe", "vocab_size": 400, **settings})
    return tokenizer.build(config, folder, TEXTS, 64)


TRAINED = build()


def test_vocabulary_has_the_size_that_was_asked_for() -> None:
    assert len(TRAINED) == 400


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_being_encoded_and_decoded(text: str) -> None:
    ids = TRAINED(text, add_special_tokens=False)["input_ids"]
    assert TRAINED.decode(ids).removeprefix(" ") == text.removeprefix(" ")


def test_text_stands_between_end_tokens_as_documents_do() -> None:
    plain = TRAINED("some text", add_special_tokens=False)["input_ids"]
    end = TRAINED.eos_token_id
    assert TRAINED("some text")["input_ids"] == [end, *plain, end]


def test_special_tokens_are_distinct() -> None:
    ids = {TRAINED.eos_token_id, TRAINED.pad_token_id, TRAINED.mask_token_id}
    assert len(ids) == 3
    assert None not in ids


def test_lowercase_and_replacements_are_applied_before_tokenising() -> None:
    built = build(lowercase=True, replace={r"https?://\S*": "http"})
    ids = built("Look HERE http://a.b/c?d", add_special_tokens=False)["input_ids"]
    assert built.decode(ids).strip() == "look here http"


def test_saved_tokenizer_is_loaded_with_the_same_ids(tmp_path: Path) -> None:
    TRAINED.save_pretrained(str(tmp_path / "saved"))
    loaded = build(tmp_path, **{"train": None, "vocab_size": None, "from": "saved"})
    assert loaded(TEXTS[0])["input_ids"] == TRAINED(TEXTS[0])["input_ids"]


def test_vocabulary_that_does_not_know_the_text_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]"
    ).save_pretrained(str(tmp_path / "words"))
    config = TokenizerConfig.model_validate({"from": "words"})
    with pytest.raises(DataError, match="vocabulary is too small for the text"):
        tokenizer.build(config, tmp_path, TEXTS, 64)


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    config = TokenizerConfig.model_validate({"from": "nothing"})
    with pytest.raises(DataError, match="holds no tokenizer"):
        tokenizer.build(config, tmp_path, TEXTS, 64)
