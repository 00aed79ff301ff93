import os
import subprocess
import sys
from itertools import pairwise
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
KINDS = ("bpe", "wordpiece", "unigram")


def build(folder: Path = Path(), **settings: object) -> PreTrainedTokenizerFast:
    config = TokenizerConfig.model_validate({"train": "bpe", "vocab_size": 400, **settings})
    return tokenizer.build(config, folder, TEXTS, 128)


TRAINED = {kind: build(train=kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_has_the_size_that_was_asked_for(kind: str) -> None:
    assert len(TRAINED[kind]) == 400


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_being_encoded_and_decoded(text: str) -> None:
    ids = TRAINED["bpe"](text, add_special_tokens=False)["input_ids"]
    assert TRAINED["bpe"].decode(ids).removeprefix(" ") == text.removeprefix(" ")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_known_words_survive_and_others_are_unknown(kind: str) -> None:
    trained = TRAINED[kind]
    for text in TEXTS:
        ids = trained(text, add_special_tokens=False)["input_ids"]
        assert trained.unk_token_id not in ids
        assert trained.decode(ids) == text
    assert trained.unk_token == "<|unknown|>"
    assert trained.unk_token_id in trained("\u4e2d", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_text_stands_between_end_tokens_as_documents_do(kind: str) -> None:
    plain = TRAINED[kind]("some text", add_special_tokens=False)["input_ids"]
    end = TRAINED[kind].eos_token_id
    assert TRAINED[kind]("some text")["input_ids"] == [end, *plain, end]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_distinct(kind: str) -> None:
    trained = TRAINED[kind]
    ids = {trained.eos_token_id, trained.pad_token_id, trained.mask_token_id}
    assert len(ids) == 3
    assert None not in ids
    assert ids <= set(range(400))


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase_and_replacements_are_applied_before_tokenising(kind: str) -> None:
    built = build(train=kind, lowercase=True, replace={r"https?://\S*": "zahlen"})
    ids = built("Look FOR http://a.b/c?d", add_special_tokens=False)["input_ids"]
    assert built.decode(ids).strip() == "look for zahlen"


@pytest.mark.parametrize("kind", KINDS)
def test_same_sample_gives_the_same_tokenizer_in_every_process(tmp_path: Path, kind: str) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pydoc_data.topics import topics\n"
        "from trainers import tokenizer\n"
        "from trainers.config import TokenizerConfig\n"
        f"config = TokenizerConfig(train={kind!r}, vocab_size=900)\n"
        "texts = [text[:4000] for text in topics.values()]\n"
        "built = tokenizer.build(config, Path(), texts, 64)\n"
        "built.save_pretrained(sys.argv[1])\n"
        "print(tokenizer.digest(Path(sys.argv[1])))\n"
    )
    digests = set()
    for number in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / number)],
            env={**os.environ, "PYTHONHASHSEED": number, "RAYON_NUM_THREADS": number},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(answer.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_more_characters_than_tokens_are_refused(kind: str) -> None:
    config = TokenizerConfig.model_validate({"train": kind, "vocab_size": 20})
    with pytest.raises(DataError, match="20 is too small for the characters of the text"):
        tokenizer.build(config, Path(), TEXTS, 64)


def test_unigram_learns_from_text_without_spaces() -> None:
    config = TokenizerConfig(train="unigram", vocab_size=40)
    built = tokenizer.build(config, Path(), ["abcabdab" * 20_000], 64)
    assert built.decode(built("abcabd", add_special_tokens=False)["input_ids"]) == "abcabd"


def test_saved_tokenizer_is_loaded_with_the_same_ids(tmp_path: Path) -> None:
    TRAINED["bpe"].save_pretrained(str(tmp_path / "saved"))
    loaded = build(tmp_path, **{"train": None, "vocab_size": None, "from": "saved"})
    assert loaded(TEXTS[0])["input_ids"] == TRAINED["bpe"](TEXTS[0])["input_ids"]


def test_digest_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    for kind in KINDS:
        TRAINED[kind].save_pretrained(str(tmp_path / kind))
    TRAINED["bpe"].save_pretrained(str(tmp_path / "again"))
    digests = {kind: tokenizer.digest(tmp_path / kind) for kind in KINDS}
    assert len(set(digests.values())) == 3
    assert tokenizer.digest(tmp_path / "again") == digests["bpe"]


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


def test_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(str(tmp_path / "words"))
    config = TokenizerConfig.model_validate({"from": "words"})
    with pytest.raises(DataError, match="names no eos_token or sep_token"):
        tokenizer.build(config, tmp_path, TEXTS, 64)


@pytest.mark.parametrize("files", [[], ["vocab.json", "merges.txt", "tokenizer_config.json"]])
def test_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path, files: list[str]) -> None:
    folder = tmp_path / "given"
    for name in files:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    config = TokenizerConfig.model_validate({"from": "given"})
    with pytest.raises(DataError, match=r"holds no tokenizer\.json; save the tokenizer there"):
        tokenizer.build(config, tmp_path, TEXTS, 64)


def test_sample_depends_on_texts_and_not_on_their_order() -> None:
    total = sum(map(len, TEXTS))
    chosen = list(tokenizer.sample(TEXTS, total // 4, total))
    assert list(tokenizer.sample(reversed(TEXTS), total // 4, total)) == chosen[::-1]
    assert 0.15 < sum(map(len, chosen)) / total < 0.35
    assert set(chosen) < set(tokenizer.sample(TEXTS, total // 2, total))


@pytest.mark.parametrize("factor", [1, 3])
def test_all_texts_are_taken_where_they_fit(factor: int) -> None:
    total = sum(map(len, TEXTS))
    assert list(tokenizer.sample(iter(TEXTS), factor * total, total)) == TEXTS


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.integers(4, 40))
def test_parts_are_the_text_in_bounded_pieces(text: str, limit: int) -> None:
    found = list(tokenizer.parts(memoryview(text.encode()), limit))
    assert "".join(found) == text
    assert all(len(part.encode()) <= limit for part in found)
    assert all(found) or text == ""


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.sampled_from("ab.,'1 \n\u00a0\u0301\u00b4\u4e2d"), max_size=80))
def test_parts_that_end_before_a_word_have_the_tokens_of_the_whole(kind: str, text: str) -> None:
    def ids(part: str) -> list[int]:
        found: list[int] = TRAINED[kind](part, add_special_tokens=False)["input_ids"]
        return found

    found = list(tokenizer.parts(memoryview(text.encode()), 12))
    whole = all(
        after.startswith(" ") and not before[-1].isspace() for before, after in pairwise(found)
    )
    if whole:
        assert [token for part in found for token in ids(part)] == ids(text)
