"""What each type makes of rows, and of a model's logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from trainers import tokenizer
from trainers.config import TokenizerConfig
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.segments import IGNORED_LABEL
from trainers.task_config import SplitConfig, TaskConfig, TaskDataConfig
from trainers.task_types import TaskType, type_of
from trainers.task_types.base import Encoded, Prediction, collate
from trainers.task_types.words import Words, carriers_of

DECODER, ENCODER = {"model_type": "llama"}, {"model_type": "bert", "type_vocab_size": 2}


def kind(name: str, labels: list[str], max_length: int = 128, **changes: Any) -> TaskType:
    metric = {
        "classification": "accuracy",
        "regression": "mse",
        "token_classification": "entity_f1",
    }[name]
    data = TaskDataConfig(
        path="x",
        format="jsonl",
        split=SplitConfig(test=0.3, validation=0.2),
        text_pair=changes.pop("text_pair", None),
    )
    settings: dict[str, Any] = {"type": name, "data": data, "metric": metric} | changes
    return type_of(TaskConfig(max_length=max_length, **settings), labels)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    config = TokenizerConfig(train="bpe", vocab_size=260)  # next to nothing but bytes
    return tokenizer.build(config, Path(), ["we met in Rome"], 64)


@pytest.mark.parametrize(
    ("left_to_right", "expected"), [(False, [1, 3, 4, -1]), (True, [2, 3, 6, -1])]
)
def test_label_stands_where_the_model_has_seen_enough(
    left_to_right: bool, expected: list[int]
) -> None:
    of_token = [None, 0, 0, 1, 2, 2, 2, None]
    assert carriers_of(of_token, 4, left_to_right=left_to_right).tolist() == expected


@pytest.mark.parametrize("network", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_every_word_carries_its_label_once(
    words: PreTrainedTokenizerFast, network: dict[str, Any]
) -> None:
    examples = Examples([["we", "met", "in", "Rome"]], [["O", "O", "O", "B-place"]])
    encoded = kind("token_classification", ["B-place", "O"]).encode(examples, words, network)
    (labels,) = encoded.labels
    assert len(labels) == len(encoded.ids[0])
    assert labels[labels != IGNORED_LABEL].tolist() == [1, 1, 1, 0]
    tokens = words.convert_ids_to_tokens(encoded.ids[0])
    labelled = [token for token, label in zip(tokens, labels, strict=True) if label >= 0]
    # With next to nothing but bytes the space before a word is a token, which is of no word.
    of_words = [words.tokenize(word)[1:] for word in examples.texts[0]]
    assert max(map(len, of_words)) > 1
    assert labelled[1:] == [word[-1 if network is DECODER else 0] for word in of_words[1:]]


@pytest.mark.parametrize("adds_space", [False, True])
def test_words_are_the_tokens_they_are_in_running_text(adds_space: bool) -> None:
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    built.train_from_iterator(["we met in Rome, we met again in Rome"] * 9, trainer)
    loaded = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<e>", pad_token="<e>")
    words, labels = ["we", "met", "in", "Rome", ","], ["O", "O", "O", "B-place", "O"]
    of_words = kind("token_classification", ["B-place", "O"])
    encoded = of_words.encode(Examples([words], [labels]), loaded, ENCODER)
    assert encoded.ids[0].tolist() == loaded("we met in Rome ,")["input_ids"]
    tokens = loaded.convert_ids_to_tokens(encoded.ids[0])
    (place,) = np.flatnonzero(encoded.labels[0] == 0)
    assert tokens[place] == "ĠRome"
    assert (encoded.labels[0] != IGNORED_LABEL).sum() == 5


def test_word_without_a_token_moves_no_label_of_others(words: PreTrainedTokenizerFast) -> None:
    of_words = kind("token_classification", ["B-place", "O"])
    examples = Examples([["in", "", "Rome"]], [["O", "O", "B-place"]])
    encoded = of_words.encode(examples, words, ENCODER)
    assert isinstance(encoded, Words)
    outputs = np.zeros((len(encoded.ids[0]), 2), dtype=np.float32)
    outputs[encoded.labels[0] == 0, 0] = outputs[encoded.labels[0] == 1, 1] = 0.9
    (found,) = of_words.predictions([outputs], encoded)
    assert found.label == ["O", "O", "B-place"]
    if encoded.carriers[0][1] < 0:
        assert found.score[1] == 0.0


@pytest.mark.parametrize(
    ("name", "texts"),
    [("classification", ["we met in Rome " * 20]), ("token_classification", [["we", "met"] * 40])],
)
def test_texts_are_cut_at_the_stated_length(
    words: PreTrainedTokenizerFast, name: str, texts: list[Any]
) -> None:
    cut = kind(name, ["a", "b"], max_length=12).encode(Examples(texts, []), words, DECODER)
    assert [len(row) for row in cut.ids] == [12]


def test_types_of_tokens_are_for_models_and_tokenizers_that_know_them(
    words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = kind("regression", [], text_pair="other")
    examples = Examples(["we met"], [0.5], ["in Rome"])
    assert pairs.encode(examples, words, ENCODER).types is None
    names = ["input_ids", "token_type_ids", "attention_mask"]
    monkeypatch.setattr(words, "model_input_names", names)
    encoded = pairs.encode(examples, words, ENCODER)
    assert encoded.types is not None
    assert set(encoded.types[0]) == {0, 1}
    assert collate(encoded, [0], 0)["token_type_ids"].tolist() == [encoded.types[0].tolist()]
    assert pairs.encode(examples, words, DECODER).types is None
    assert kind("regression", []).encode(Examples(["a"], [0.5]), words, ENCODER).types is None


def test_batch_is_padded_on_the_right_to_its_longest_row() -> None:
    ids = [np.array([5, 6, 7]), np.array([8])]
    labels = [np.array([1, 0, 1]), np.array([1])]
    carriers = [np.array([0, 1, 2]), np.array([0])]
    batch = collate(Words(ids, labels, carriers=carriers), [0, 1], pad_token=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 0, 1], [1, IGNORED_LABEL, IGNORED_LABEL]]


def test_labels_of_texts_are_one_tensor() -> None:
    ids = [np.array([5]), np.array([6, 7])]
    several = kind("classification", ["a", "b", "c"], multi_label=True)
    rows = Encoded(ids, [several.target(label) for label in (["a", "c"], [])])  # type: ignore[attr-defined]
    assert collate(rows, [1, 0], 0)["labels"].tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]])


def test_one_label_is_the_likeliest() -> None:
    one = kind("classification", ["a", "b", "c"])
    found = one.predictions(list(one.activate(LOGITS).numpy()), Encoded([], []))
    assert [prediction.label for prediction in found] == ["a", "b"]
    assert sum(found[0].probabilities or ()) == pytest.approx(1.0)
    assert found[0].score == max(found[0].probabilities or ())


def test_several_labels_are_those_likelier_than_not() -> None:
    several = kind("classification", ["a", "b", "c"], multi_label=True)
    found = several.predictions(list(several.activate(LOGITS).numpy()), Encoded([], []))
    assert [prediction.label for prediction in found] == [["a", "c"], ["a", "b"]]
    assert found[0].score == pytest.approx([0.8808, 0.6225], abs=1e-4)


def test_loss_of_one_label_weighs_rows_by_their_label() -> None:
    one = kind("classification", ["a", "b", "c"])
    targets, weights = torch.tensor([0, 2]), torch.tensor([1.0, 1.0, 3.0])
    loss = one.loss(LOGITS, targets, smoothing=0.0, weights=weights)
    each = functional.cross_entropy(LOGITS, targets, reduction="none")
    torch.testing.assert_close(loss, (each[0] + 3 * each[1]) / 4)


def test_loss_of_several_labels_weighs_texts_that_have_them() -> None:
    several = kind("classification", ["a", "b", "c"], multi_label=True)
    targets, weights = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([5.0, 5.0, 5.0])
    loss = several.loss(LOGITS[:1], targets, smoothing=0.0, weights=weights)
    a, b, c = LOGITS[0].sigmoid()
    torch.testing.assert_close(loss, -(5 * a.log() + (1 - b).log() + (1 - c).log()) / 3)


def test_smoothing_of_several_labels_draws_targets_to_the_middle() -> None:
    several = kind("classification", ["a", "b"], multi_label=True)
    targets = torch.tensor([[1.0, 0.0]])
    logits = torch.tensor([[0.9, 0.1]]).logit()
    least = several.loss(logits, targets, smoothing=0.2, weights=None)
    for other in (0.8, 0.99):
        moved = torch.tensor([[other, 1 - other]]).logit()
        assert several.loss(moved, targets, smoothing=0.2, weights=None) > least


def test_loss_of_a_number_is_its_squared_error() -> None:
    loss = kind("regression", []).loss(
        torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]), smoothing=0.0, weights=None
    )
    assert float(loss) == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize(
    ("multi_label", "labels", "asked", "expected"),
    [
        (False, ["a", "a", "a", "b"], None, None),
        (False, ["a", "a", "a", "b"], "balanced", [4 / 6, 4 / 2, 1.0]),
        (False, ["a", "b"], {"b": 2.5}, [1.0, 2.5, 1.0]),
        (True, [["a"], ["a", "b"], [], ["a"]], "balanced", [1 / 3, 3.0, 1.0]),
        (True, [["a"]], {"a": 2.0}, [2.0, 1.0, 1.0]),
    ],
)
def test_weights_are_those_asked_for(
    multi_label: bool, labels: list[Any], asked: Any, expected: list[float] | None
) -> None:
    names = ["a", "b", "c"]
    found = kind("classification", names, multi_label=multi_label, class_weights=asked).weights(
        labels
    )
    assert (None if found is None else found.tolist()) == pytest.approx(expected)


def test_weight_of_an_unknown_label_is_refused() -> None:
    one = kind("classification", ["a", "b"], class_weights={"good": 2.0})
    with pytest.raises(DataError, match="class_weights names good; the labels are a, b"):
        one.weights(["a", "b"])


def test_metric_that_rows_do_not_define_is_refused() -> None:
    one = kind("classification", ["a", "b"], metric="auroc")
    found = [Prediction("a", 0.9, [0.9, 0.1])] * 2
    assert "auroc" not in one.score(["a", "a"], found)
    with pytest.raises(DataError, match=r"auroc is not defined on 2 rows with the labels \['a'\]"):
        one.required_score(["a", "a"], found)
