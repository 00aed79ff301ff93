import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import task_data
from trainers.cleaning import text_key
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.task_config import SplitConfig, TaskDataConfig
from trainers.task_types import class_of

ONE_LABEL = class_of("classification", multi_label=False)
SEVERAL_LABELS = class_of("classification", multi_label=True)
NUMBER = class_of("regression", multi_label=False)
OF_WORDS = class_of("token_classification", multi_label=False)


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
    return task_data.prepare(config, ONE_LABEL, folder, folder)


def split_texts(folder: Path) -> dict[str, list[str]]:
    return {name: task_data.load(folder, name).texts for name in task_data.SPLITS}


ROWS = [(f"text number {n}", "even" if n % 2 == 0 else "odd") for n in range(200)]


def test_rows_are_divided_once_in_the_stated_shares(tmp_path: Path) -> None:
    facts = prepare(tmp_path, ROWS)
    found = split_texts(tmp_path)
    assert sorted(text for texts in found.values() for text in texts) == sorted(t for t, _ in ROWS)
    assert 40 <= len(found["test"]) <= 80
    assert 20 <= len(found["validation"]) <= 60
    assert facts["labels"] == task_data.load_labels(tmp_path) == ["even", "odd"]
    labels = dict(ROWS)
    for name in task_data.SPLITS:
        examples = task_data.load(tmp_path, name)
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
    assert task_data.test_texts(tmp_path) == split_texts(tmp_path)["test"]


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
        task_data.prepare(config, OF_WORDS, tmp_path, tmp_path)


def prepare_words(folder: Path, rows: list[list[str]]) -> None:
    """Word-level rows whose every word is a place when it begins with a capital."""
    path = folder / "rows.jsonl"
    lines = [
        {"text": words, "label": ["B-place" if word[0].isupper() else "O" for word in words]}
        for words in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    split = SplitConfig(test=0.3, validation=0.2)
    config = TaskDataConfig(path="rows.jsonl", format="jsonl", split=split)
    task_data.prepare(config, OF_WORDS, folder, folder)


def test_sentences_of_the_same_words_fall_on_the_same_side(tmp_path: Path) -> None:
    rows = [["in", f"Town{n}"] for n in range(100)]
    prepare_words(tmp_path, rows + [["IN", f"town{n}"] for n in range(100)])
    keys = [{text_key(" ".join(words)) for words in t} for t in split_texts(tmp_path).values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 100


def test_test_texts_of_sentences_are_their_words_with_spaces(tmp_path: Path) -> None:
    prepare_words(tmp_path, [["in", f"Town{n}"] for n in range(100)])
    found = task_data.test_texts(tmp_path)
    assert found == [" ".join(words) for words in split_texts(tmp_path)["test"]]
    assert all(text.startswith("in Town") for text in found)


def test_numbers_become_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(f'{{"text": "t{n}", "label": {n % 11}}}' for n in range(200)))
    split = SplitConfig(test=0.3, validation=0.2)
    config = TaskDataConfig(path="rows.jsonl", format="jsonl", split=split)
    facts = task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
    assert facts["labels"] == sorted(str(number) for number in range(11))
    assert facts["rows"] == {name: len(task_data.load(tmp_path, name)) for name in task_data.SPLITS}


def test_training_rows_are_chosen_by_the_seed_whatever_their_order(tmp_path: Path) -> None:
    chosen = []
    for rows, seed in [(ROWS, 0), (ROWS[::-1], 0), (ROWS, 1)]:
        prepare(tmp_path, rows, seed, train_rows=10)
        chosen.append(set(split_texts(tmp_path)["train"]))
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (ONE_LABEL, {"text": "a", "label": ["x"]}, "set multi_label: true"),
        (ONE_LABEL, {"text": ["a"], "label": "x"}, "text is a list; texts are strings"),
        (SEVERAL_LABELS, {"text": "a", "label": "x,y"}, "label is no list of labels"),
        (NUMBER, {"text": "a", "label": "x"}, "label is 'x', which is no number"),
        (NUMBER, {"text": "a", "label": "nan"}, "which is no number"),
    ],
)
def test_label_that_does_not_fit_the_type_is_named(
    tmp_path: Path, kind: Any, row: dict[str, Any], expected: str
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row])
    split = SplitConfig(test=0.3, validation=0.2)
    config = TaskDataConfig(path="rows.jsonl", format="jsonl", split=split)
    with pytest.raises(DataError, match=f"row 1: .*{expected}"):
        task_data.prepare(config, kind, tmp_path, tmp_path)


def test_labels_in_a_text_are_parted_by_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    labels = ["", "b| a", "a", "b"]
    path.write_text("text,label\n" + "\n".join(f"t{n},{labels[n % 4]}" for n in range(80)))
    split = SplitConfig(test=0.3, validation=0.2)
    config = TaskDataConfig(path="rows.csv", format="csv", label_separator="|", split=split)
    facts = task_data.prepare(config, SEVERAL_LABELS, tmp_path, tmp_path)
    assert facts["labels"] == ["a", "b"]
    for name in task_data.SPLITS:
        found = task_data.load(tmp_path, name)
        numbers = [int(text[1:]) for text in found.texts]
        expected: list[list[str]] = [[], ["a", "b"], ["a"], ["b"]]
        assert found.labels == [expected[number % 4] for number in numbers]


def test_pairs_are_told_apart_by_both_texts(tmp_path: Path) -> None:
    rows = [{"a": "same", "b": f"text {n}", "y": n / 7} for n in range(90)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = TaskDataConfig(
        path="rows.jsonl",
        format="jsonl",
        text="a",
        text_pair="b",
        label="y",
        split=SplitConfig(test=0.3, validation=0.2),
    )
    task_data.prepare(config, NUMBER, tmp_path, tmp_path)
    found = [task_data.load(tmp_path, name) for name in task_data.SPLITS]
    assert all(len(split) > 5 for split in found)
    for split in found:
        assert split.pairs is not None
        assert split.labels == [int(pair.split()[1]) / 7 for pair in split.pairs]
    assert "same" in task_data.test_texts(tmp_path)
    assert set(found[2].pairs or ()) < set(task_data.test_texts(tmp_path))


def test_files_of_their_own_are_splits_and_duplicates_stay_on_the_sealed_side(
    tmp_path: Path,
) -> None:
    def rows(numbers: range) -> list[dict[str, Any]]:
        return [{"text": f"Text {n}", "label": "ab"[n % 2]} for n in numbers]

    for name, numbers in {"a": range(60), "b": range(50, 80), "c": range(70, 90)}.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows(numbers))
    config = TaskDataConfig(
        path="a.jsonl", format="jsonl", validation_path="b.jsonl", test_path="c.jsonl"
    )
    facts = task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
    assert facts["rows"] == {"train": 50, "validation": 20, "test": 20}
    assert facts["left_out"] == 20
    assert set(split_texts(tmp_path)["test"]) == {f"Text {n}" for n in range(70, 90)}

    config = TaskDataConfig(
        path="a.jsonl", format="jsonl", test_path="c.jsonl", split=SplitConfig(validation=0.25)
    )
    task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
    found = {name: len(texts) for name, texts in split_texts(tmp_path).items()}
    assert found["test"] == 20
    assert found["train"] + found["validation"] == 60
    assert found["validation"] > 5


def test_stratified_splits_have_each_label_in_its_exact_share(tmp_path: Path) -> None:
    rows = [(f"text {n}", "rare" if n % 10 == 0 else "usual") for n in range(200)]
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in rows))
    found = []
    for seed in (0, 0, 1):
        split = SplitConfig(test=0.3, validation=0.2, seed=seed, stratify=True)
        config = TaskDataConfig(path="rows.csv", format="csv", split=split)
        task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
        counts = {
            name: task_data.load(tmp_path, name).labels.count("rare") for name in task_data.SPLITS
        }
        assert counts == {"train": 10, "validation": 4, "test": 6}
        found.append(split_texts(tmp_path))
    assert found[0] == found[1] != found[2]


def test_duplicates_with_other_labels_stay_together_in_stratified_splits(tmp_path: Path) -> None:
    lines = [f"text {n % 40},{'ab'[n % 2] if n < 40 else 'ba'[n % 2]}" for n in range(80)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines))
    split = SplitConfig(test=0.3, validation=0.2, stratify=True)
    config = TaskDataConfig(path="rows.csv", format="csv", split=split)
    task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
    keys = [set(texts) for texts in split_texts(tmp_path).values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 40


def test_test_rows_are_known_by_what_they_hold(tmp_path: Path) -> None:
    prepare(tmp_path, ROWS)
    before = task_data.digest_of_test(tmp_path)
    train = task_data.load(tmp_path, task_data.TRAIN).texts
    prepare(tmp_path, [row for row in ROWS if row[0] != train[0]])
    assert task_data.digest_of_test(tmp_path) == before
    test = task_data.load(tmp_path, task_data.TEST).texts
    prepare(tmp_path, [row for row in ROWS if row[0] != test[0]])
    assert task_data.digest_of_test(tmp_path) != before


def test_order_of_rows_moves_none_in_stratified_splits(tmp_path: Path) -> None:
    lines = [f"text {n},{'ab'[n % 2]}" for n in range(40)] + [
        f"text {n},c" for n in range(0, 40, 3)
    ]
    split = SplitConfig(test=0.3, validation=0.2, stratify=True)
    config = TaskDataConfig(path="rows.csv", format="csv", split=split)
    found = []
    for order in (lines, lines[::-1]):
        (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(order))
        task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
        found.append([set(texts) for texts in split_texts(tmp_path).values()])
    assert found[0] == found[1]


def test_rows_that_come_later_move_no_row_that_was_there(tmp_path: Path) -> None:
    prepare(tmp_path, ROWS[:150])
    before = split_texts(tmp_path)
    prepare(tmp_path, ROWS)
    after = split_texts(tmp_path)
    assert all(set(before[name]) <= set(after[name]) for name in task_data.SPLITS)


def test_fewer_labels_are_a_share_of_each_and_a_part_of_more() -> None:
    labels = ["rare" if n % 20 == 0 else "usual" for n in range(400)]
    rows = Examples([f"text {n}" for n in range(400)], labels, [f"pair {n}" for n in range(400)])
    few = [task_data.fewer(rows, share, ONE_LABEL, seed=0) for share in (0.01, 0.1, 0.5)]
    assert [len(one) for one in few] == [1 + 4, 2 + 38, 10 + 190]
    assert [one.labels.count("rare") for one in few] == [1, 2, 10]
    assert set(few[0].texts) < set(few[1].texts) < set(few[2].texts)
    for one in few:
        numbers = [int(text.split()[1]) for text in one.texts]
        assert one.labels == [labels[number] for number in numbers]
        assert one.pairs == [f"pair {number}" for number in numbers]
    assert task_data.fewer(rows, 0.1, ONE_LABEL, seed=1).texts != few[1].texts


def test_data_sets_are_read_with_the_names_of_their_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    for name, numbers in {"train": range(60), "test": range(60, 80)}.items():
        rows = [{"text": f"text {n}", "label": n % 2} for n in numbers]
        saved = datasets.Dataset.from_list(rows, features=features)
        saved.save_to_disk(str(tmp_path / "saved" / name))
    config = TaskDataConfig(
        path="saved/train",
        format="dataset",
        test_path="saved/test",
        split=SplitConfig(validation=0.3),
    )
    facts = task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
    assert facts["labels"] == ["no", "yes"]
    assert facts["rows"]["test"] == 20
    found = task_data.load(tmp_path, "test")
    assert found.labels == [["no", "yes"][int(text.split()[1]) % 2] for text in found.texts]


def test_classes_of_words_in_data_sets_are_named_and_unknown_ones_refused(tmp_path: Path) -> None:
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "B-place"]))
    features = datasets.Features({"text": datasets.List(datasets.Value("string")), "label": tags})
    rows = [{"text": ["in", f"Town{n}"], "label": [0, 1]} for n in range(60)]
    split = SplitConfig(test=0.3, validation=0.2)
    config = TaskDataConfig(path="saved", format="dataset", split=split)
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    facts = task_data.prepare(config, OF_WORDS, tmp_path, tmp_path)
    assert facts["labels"] == ["B-place", "O"]
    rows[3] = {"text": ["in", "Rome"], "label": [0, -1]}
    config = TaskDataConfig(path="unknown", format="dataset", split=split)
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "unknown"))
    with pytest.raises(DataError, match="row 4: a word or label is empty"):
        task_data.prepare(config, OF_WORDS, tmp_path, tmp_path)


def test_slices_are_kept_and_do_not_change_what_the_test_rows_are(tmp_path: Path) -> None:
    digests = []
    for column in (None, "language"):
        path = tmp_path / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "language"])
            writer.writerows([text, label, f"l{len(text) % 3}"] for text, label in ROWS)
        split = SplitConfig(test=0.3, validation=0.2)
        config = TaskDataConfig(path="rows.csv", format="csv", split=split, slice_by=column)
        task_data.prepare(config, ONE_LABEL, tmp_path, tmp_path)
        texts = task_data.load(tmp_path, task_data.TEST).texts
        expected = [f"l{len(text) % 3}" for text in texts] if column else []
        assert task_data.slices_of_test(tmp_path) == expected
        digests.append(task_data.digest_of_test(tmp_path))
    assert digests[0] == digests[1]
