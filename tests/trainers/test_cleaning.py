import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers import cleaning
from trainers.cleaning import KEY_BYTES, Cleaner, HeldOut, Verdict
from trainers.config import CleaningConfig

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def held_out(folder: Path, texts: list[str], **config: object) -> HeldOut:
    settings = CleaningConfig.model_validate(config)
    cleaning.write_held_out(texts, settings, folder / "held-out")
    return HeldOut.load(folder / "held-out")


def verdict(folder: Path, text: str, texts: list[str], **config: object) -> Verdict:
    settings = CleaningConfig.model_validate(config)
    return Cleaner(settings, held_out(folder, texts, **config)).clean(text)[2]


@given(st.text())
def test_key_is_the_digest_of_the_words_whatever_case_and_spacing(text: str) -> None:
    words = " ".join(text.lower().split())
    expected = hashlib.sha256(words.encode("utf-8", "replace")).digest()[:KEY_BYTES]
    if words.isprintable():  # no lone surrogates: documents have none
        assert cleaning.key_of(text) == expected
    assert cleaning.key_of(f"  {words}\n") == cleaning.key_of(words)


def test_key_of_a_long_text_is_that_of_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Some   words\tAND more " * 300_000
    expected = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()[:KEY_BYTES]
    assert cleaning.key_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"so {THIRTEEN.upper()}, he said", "contaminated"),
        (f"so {THIRTEEN.replace(' ', ', ')}!", "contaminated"),
        (THIRTEEN.replace("seven", "7"), "kept"),
        (THIRTEEN.removesuffix(" thirteen"), "kept"),
        (" ".join(THIRTEEN.split()[::-1]), "kept"),
        ("Short  Text", "held_out"),
        ("a short text", "kept"),
    ],
)
def test_thirteen_words_in_a_row_or_the_whole_text_give_a_document_away(
    tmp_path: Path, text: str, expected: str
) -> None:
    tests = [f"zero {THIRTEEN} fourteen", "short text"]
    assert verdict(tmp_path, text, tests) == expected


def test_every_part_of_a_long_test_text_counts(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(60)]
    barred = held_out(tmp_path, [" ".join(words)])
    for start in range(48):
        assert barred.shares_ngram(" ".join(["other", *words[start : start + 13]]), 13)
        assert not barred.shares_ngram(" ".join(words[start : start + 12]), 13)


def test_ngrams_of_two_texts_are_not_joined(tmp_path: Path) -> None:
    words = THIRTEEN.split()
    tests = [" ".join(words[:7]), " ".join(words[7:])]
    assert verdict(tmp_path, THIRTEEN, tests) == "kept"


def test_ngrams_are_compared_only_where_asked(tmp_path: Path) -> None:
    tests = [f"zero {THIRTEEN}"]
    assert verdict(tmp_path, THIRTEEN, tests, held_out_ngram=None) == "kept"
    assert verdict(tmp_path, "so four five six", tests, held_out_ngram=3) == "contaminated"


@pytest.mark.parametrize(
    ("form", "test", "document"),
    [
        ("NFC", "the cafe\u0301 was good", "the caf\xe9 was good"),
        ("NFKC", "a \ufb01lm as \ufb02at as this", "a film as flat as this"),
    ],
)
def test_test_text_is_known_in_whatever_form_it_is_written(
    tmp_path: Path, form: str, test: str, document: str
) -> None:
    for text in (test, document):
        assert verdict(tmp_path, text, [test], normalize=form) == "held_out"
        longer = f"and {text} he said"
        found = verdict(tmp_path, longer, [test], normalize=form, held_out_ngram=4)
        assert found == "contaminated"


def test_short_documents_are_told_apart_after_normalisation(tmp_path: Path) -> None:
    assert verdict(tmp_path, "four", [], min_characters=5) == "short"
    assert verdict(tmp_path, "fours", [], min_characters=5) == "kept"
    # e and a combining accent are one character in NFC.
    assert verdict(tmp_path, "cafe\u0301", [], min_characters=5) == "kept"
    assert verdict(tmp_path, "cafe\u0301", [], min_characters=5, normalize="NFC") == "short"


def test_normalised_text_is_what_is_learnt_from(tmp_path: Path) -> None:
    nothing = held_out(tmp_path, [])
    clean = Cleaner(CleaningConfig(normalize="NFKC"), nothing).clean
    assert clean("ﬁne \uff12")[0] == "fine 2"
    assert clean("ﬁne \uff12")[1] == clean("Fine  2")[1]
    assert Cleaner(CleaningConfig(), nothing).clean("ﬁne \uff12")[0] == "ﬁne \uff12"
