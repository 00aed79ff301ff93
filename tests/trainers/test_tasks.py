import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import tasks, tokenizer
from trainers.cleaning import text_key
from trainers.config import TokenizerConfig
from trainers.errors import DataError
from trainers.segments import IGNORED_LABEL
from trainers.task_config import SplitConfig, TaskConfig, TaskDataConfig
from trainers.tasks import Encoded, Examples, collate


def prepare(
    folder: Path, rows: list[tuple[str, str]], seed: int = 0, train_rows: int | None = None
) -> dict[str, Any]:
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    split = SplitConfig(test=0.3, validation=0.2, seed=seed)
    config = TaskDataConfig(path="rows.csv", format="csv", split=split, train_rows=train_rows)
    return tasks.prepare(config, path, folder)


def split_texts(folder: Path) -> dict[str, list[str]]:
    return {name: tasks.load(folder, name).texts for name in tasks.SPLITS}


ROWS = [(f"text number {n}", "even" if n % 2 == 0 else "odd") for n in range(200)]


def test_rows_are_divided_once_in_the_stated_shares(tmp_path: Path) -> None:
    facts = prepare(tmp_path, ROWS)
    found = split_texts(tmp_path)
    assert sorted(text for texts in found.values() for text in texts) == sorted(t for t, _ in ROWS)
    assert 40 <= len(found["test"]) <= 80
    assert 20 <= len(found["validation"]) <= 60
    assert facts["labels"] == tasks.load_labels(tmp_path) == ["even", "odd"]
    labels = dict(ROWS)
    for name in tasks.SPLITS:
        examples = tasks.load(tmp_path, name)
        assert examples.labels == [labels[text] for text in examples.texts]


def test_split_follows_from_the_seed_and_the_texts_alone(tmp_path: Path) -> None:
    found = []
    for number, (rows, seed) in enumerate([(ROWS, 0), (ROWS[::-1], 0), (ROWS, 1)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare(folder, rows, seed)
        found.append({name: set(texts) for name, texts in split_texts(folder).items()})
    assert found[0] == found[1]
    assert found[0] != found[2]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_duplicates_never_cross_a_border(
    tmp_path_factory: pytest.TempPathFactory, generator: random.Random
) -> None:
    rows = [(f"text {generator.randrange(60)}", generator.choice("ab")) for _ in range(150)]
    rows = [(generator.choice([t, t.upper(), f" {t}  "]), label) for t, label in rows]
    rows += [(f"another text {n}", "ab"[n % 2]) for n in range(40)]
    folder = tmp_path_factory.mktemp("split")
    prepare(folder, rows)
    keys = [{text_key(text) for text in texts} for texts in split_texts(folder).values()]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]


def test_fewer_training_rows_leave_the_other_splits_alone(tmp_path: Path) -> None:
    prepare(tmp_path, ROWS)
    whole = split_texts(tmp_path)
    prepare(tmp_path, ROWS, train_rows=10)
    few = split_texts(tmp_path)
    assert len(few["train"]) == 10
    assert set(few["train"]) < set(whole["train"])
    assert (few["validation"], few["test"]) == (whole["validation"], whole["test"])


def test_texts_of_the_test_split_are_given_without_labels(tmp_path: Path) -> None:
    prepare(tmp_path, ROWS)
    assert tasks.test_texts(tmp_path) == split_texts(tmp_path)["test"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ROWS[:2], "leave none for"),
        ([(text, "same") for text, _ in ROWS], "needs two labels at least"),
    ],
)
def test_rows_that_make_no_task_are_refused(
    tmp_path: Path, rows: list[tuple[str, str]], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        prepare(tmp_path, rows)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"text": ["a", "b"], "label": "x"}', "must both be lists"),
        ('{"text": ["a", "b"], "label": ["x"]}', "2 words but 1 labels"),
        ('{"text": ["a", null], "label": ["x", "y"]}', "is empty"),
    ],
)
def test_row_whose_words_and_labels_do_not_fit_is_named(
    tmp_path: Path, row: str, expected: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    split = SplitConfig(test=0.3, validation=0.2)
    config = TaskDataConfig(path="rows.jsonl", format="jsonl", split=split)
    with pytest.raises(DataError, match=f"row 1: .*{expected}"):
        tasks.prepare(config, path, tmp_path)


@pytest.mark.parametrize(
    ("left_to_right", "expected"), [(False, {0: 1, 1: 3, 2: 4}), (True, {0: 2, 1: 3, 2: 6})]
)
def test_label_stands_where_the_model_has_seen_enough(
    left_to_right: bool, expected: dict[int, int]
) -> None:
    words = [None, 0, 0, 1, 2, 2, 2, None]
    assert tasks.label_positions(words, left_to_right=left_to_right) == expected


@pytest.mark.parametrize("left_to_right", [False, True])
def test_every_word_carries_its_label_once(left_to_right: bool) -> None:
    config = TokenizerConfig(train="bpe", vocab_size=260)  # next to nothing but bytes
    loaded = tokenizer.build(config, Path(), ["we met in Rome"], 64)
    split = SplitConfig(test=0.3, validation=0.2)
    task = TaskConfig(
        type="token_classification",
        data=TaskDataConfig(path="x", format="conll", split=split),
        metric="entity_f1",
    )
    examples = Examples([["we", "met", "in", "Rome"]], [["O", "O", "O", "B-place"]])
    encoded = tasks.encode(examples, ["B-place", "O"], task, loaded, left_to_right=left_to_right)
    (labels,) = encoded.labels
    assert len(labels) == len(encoded.ids[0])
    assert labels[labels != IGNORED_LABEL].tolist() == [1, 1, 1, 0]
    tokens = loaded.convert_ids_to_tokens(encoded.ids[0])
    labelled = [token for token, label in zip(tokens, labels, strict=True) if label >= 0]
    of_words = [loaded.tokenize(word) for word in examples.texts[0]]
    assert min(map(len, of_words)) > 1
    assert labelled == [word[-1 if left_to_right else 0] for word in of_words]


def test_batch_is_padded_on_the_right_to_its_longest_row() -> None:
    import numpy as np

    rows = Encoded([np.array([5, 6, 7]), np.array([8])], [np.array([1, 0, 1]), np.array([1])])
    batch = collate(rows, [0, 1], pad_token=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 0, 1], [1, IGNORED_LABEL, IGNORED_LABEL]]


def prepare_words(folder: Path, rows: list[list[str]]) -> None:
    """Word-level rows whose every word is a place when it begins with a capital."""
    path = folder / "rows.jsonl"
    lines = [
        {"text": words, "label": ["B-place" if word[0].isupper() else "O" for word in words]}
        for words in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    split = SplitConfig(test=0.3, validation=0.2)
    tasks.prepare(TaskDataConfig(path="rows.jsonl", format="jsonl", split=split), path, folder)


def test_sentences_of_the_same_words_fall_on_the_same_side(tmp_path: Path) -> None:
    rows = [["in", f"Town{n}"] for n in range(100)]
    prepare_words(tmp_path, rows + [["IN", f"town{n}"] for n in range(100)])
    keys = [{text_key(" ".join(words)) for words in t} for t in split_texts(tmp_path).values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 100


def test_test_texts_of_sentences_are_their_words_with_spaces(tmp_path: Path) -> None:
    prepare_words(tmp_path, [["in", f"Town{n}"] for n in range(100)])
    found = tasks.test_texts(tmp_path)
    assert found == [" ".join(words) for words in split_texts(tmp_path)["test"]]
    assert all(text.startswith("in Town") for text in found)


def test_numbers_become_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(f'{{"text": "t{n}", "label": {n % 11}}}' for n in range(200)))
    split = SplitConfig(test=0.3, validation=0.2)
    config = TaskDataConfig(path="rows.jsonl", format="jsonl", split=split)
    facts = tasks.prepare(config, path, tmp_path)
    assert facts["labels"] == sorted(str(number) for number in range(11))
    assert facts["rows"] == {name: len(tasks.load(tmp_path, name)) for name in tasks.SPLITS}


def test_training_rows_are_chosen_by_the_seed_whatever_their_order(tmp_path: Path) -> None:
    chosen = []
    for rows, seed in [(ROWS, 0), (ROWS[::-1], 0), (ROWS, 1)]:
        prepare(tmp_path, rows, seed, train_rows=10)
        chosen.append(set(split_texts(tmp_path)["train"]))
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_texts_are_cut_at_the_stated_length() -> None:
    config = TokenizerConfig(train="bpe", vocab_size=270)
    loaded = tokenizer.build(config, Path(), ["we met in Rome"], 64)
    for texts in (["we met in Rome " * 20], [["we", "met"] * 40]):
        words = isinstance(texts[0], list)
        encoding = tasks.encode_texts(texts, loaded, words=words, max_length=12)
        assert len(encoding["input_ids"][0]) == 12
