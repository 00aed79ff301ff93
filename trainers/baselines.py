"""What a task's score must be compared with: methods that need no neural network."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from trainers.examples import Examples
from trainers.metrics import words
from trainers.task_types.answers import QuestionAnswering
from trainers.task_types.base import Encoded, OnePass, Prediction, TaskType
from trainers.task_types.classification import MultiLabel
from trainers.task_types.generation import Generation
from trainers.task_types.regression import Regression
from trainers.task_types.words import TokenClassification

_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularisations."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_FEATURES: dict[str, dict[str, Any]] = {
    "tf-idf": {"ngram_range": (1, 2), "tokenizer": words, "token_pattern": None},
    "tf-idf of characters": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}


def evaluate(
    kind: TaskType, train: Examples, validation: Examples, test: Examples
) -> dict[str, dict[str, float]]:
    """Test scores by baseline, trained on the rows the model is trained on."""
    return scores(kind, test, predictions(kind, train, validation, test))


def scores(
    kind: TaskType, test: Examples, found: Mapping[str, Sequence[Prediction]]
) -> dict[str, dict[str, float]]:
    """By baseline, of what each says of the test rows."""
    return {name: kind.score(test.labels, said) for name, said in found.items()}


def predictions(
    kind: TaskType, train: Examples, validation: Examples, test: Examples
) -> dict[str, list[Prediction]]:
    """What each baseline says of the test rows, trained on the rows the model is trained on."""
    return {
        name: said
        for name, predict in _methods(kind, train, validation, test).items()
        if (said := _unless_empty(predict)) is not None
    }


def _unless_empty(predict: Callable[[], list[Prediction]]) -> list[Prediction] | None:
    """What a method says; None where no text has a word that it could learn from."""
    try:
        return predict()
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        return None


def _methods(
    kind: TaskType, train: Examples, validation: Examples, test: Examples
) -> Mapping[str, Callable[[], list[Prediction]]]:
    """What each baseline says of the test rows, when it is asked."""
    match kind:
        case TokenClassification():
            return {
                kind.constant: partial(_majority_tags, train, test),
                "dictionary": partial(_dictionary, train, test),
            }
        case QuestionAnswering():
            return {
                kind.constant: partial(_said, test.texts),
                "sentence most like the question": partial(_likest_sentences, test),
            }
        case Generation():
            most_frequent = Counter(train.labels).most_common(1)[0][0]
            return {
                kind.constant: partial(_said, [most_frequent] * len(test)),
                "answer to the likest text": partial(_answers_to_likest, train, test),
            }
    assert isinstance(kind, OnePass)  # the other types are above
    return {kind.constant: partial(_constant, kind, train, test)} | {
        name: partial(_tf_idf, kind, settings, train, validation, test)
        for name, settings in _FEATURES.items()
    }


def _said(texts: Iterable[str]) -> list[Prediction]:
    return [Prediction(text, None) for text in texts]


def _likest_sentences(test: Examples) -> list[Prediction]:
    """Of each text the sentence that shares most words with the question."""

    def shared(sentence: str, question: str) -> int:
        return len(set(words(sentence.lower())) & set(words(question.lower())))

    return _said(
        max(_SENTENCE_END.split(text), key=lambda one: shared(one, question))
        for text, question in zip(test.texts, test.pairs or (), strict=True)
    )


def _answers_to_likest(train: Examples, test: Examples) -> list[Prediction]:
    """The answer to the training text with the greatest TF-IDF cosine."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, tokenizer=words, token_pattern=None).fit(
        train.texts
    )
    alike = vectorizer.transform(test.texts) @ vectorizer.transform(train.texts).T
    return _said(train.labels[row] for row in np.asarray(alike.argmax(axis=1)).ravel())


def _constant(kind: OnePass, train: Examples, test: Examples) -> list[Prediction]:
    """The mean number, or the share of each label, for every row."""
    if isinstance(kind, Regression):
        output = np.array([fmean(train.labels)])
    else:
        output = _targets(kind, train.labels).mean(axis=0)
    return kind.predictions([output] * len(test), Encoded([], []))


def _tf_idf(
    kind: OnePass,
    settings: dict[str, Any],
    train: Examples,
    validation: Examples,
    test: Examples,
) -> list[Prediction]:
    """TF-IDF and a linear model; its one setting by validation."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, **settings)
    vectorizer.fit([*train.texts, *(train.pairs or [])])
    known, held_out, unseen = (_features(vectorizer, rows) for rows in (train, validation, test))

    def fitted(strength: float) -> Any:
        return _linear(kind, strength).fit(known, _learnable(kind, train.labels))

    def said(linear: Any, features: Any) -> list[Prediction]:
        return kind.predictions(list(_outputs(kind, linear, features)), Encoded([], []))

    def merit(linear: Any) -> float:
        found = said(linear, held_out)
        return kind.task.merit(kind.required_score(validation.labels, found))

    return said(max(map(fitted, _STRENGTHS), key=merit), unseen)


def _features(vectorizer: TfidfVectorizer, rows: Examples) -> Any:
    """Of one text its terms; of two both their terms, and those they share."""
    first = vectorizer.transform(rows.texts)
    if rows.pairs is None:
        return first
    second = vectorizer.transform(rows.pairs)
    return scipy.sparse.hstack([first, second, first.multiply(second)]).tocsr()


def _linear(kind: TaskType, strength: float) -> Any:
    if isinstance(kind, Regression):
        return Ridge(alpha=1.0 / strength)
    model = LogisticRegression(C=strength, max_iter=2000)
    return OneVsRestClassifier(model) if isinstance(kind, MultiLabel) else model


def _learnable(kind: TaskType, labels: Sequence[Any]) -> Any:
    """Labels as scikit-learn takes them."""
    return _targets(kind, labels) if isinstance(kind, MultiLabel) else labels


def _outputs(kind: TaskType, linear: Any, features: Any) -> NDArray[np.float64]:
    """What a model of ours would have said: numbers, or probabilities of all labels."""
    if isinstance(kind, Regression):
        return np.asarray(linear.predict(features)).reshape(-1, 1)
    found = linear.predict_proba(features)
    if isinstance(kind, MultiLabel):
        return np.asarray(found)
    outputs = np.zeros((len(found), len(kind.labels)))
    outputs[:, [kind.labels.index(name) for name in linear.classes_]] = found
    return outputs


def _targets(kind: TaskType, labels: Sequence[Any]) -> NDArray[np.float64]:
    """1 where a row has a label, shape (rows, labels)."""
    own = [set(label) if isinstance(label, list) else {label} for label in labels]
    return np.array([[float(name in names) for name in kind.labels] for names in own])


def _usual_tag(train: Examples) -> Any:
    return Counter(tag for tags in train.labels for tag in tags).most_common(1)[0][0]


def _majority_tags(train: Examples, test: Examples) -> list[Prediction]:
    tag = _usual_tag(train)
    return [Prediction([tag] * len(text), None) for text in test.texts]


def _dictionary(train: Examples, test: Examples) -> list[Prediction]:
    """Each word's most frequent tag in training; the most frequent tag of all for new words."""
    by_word: dict[Any, Counter[str]] = {}
    for text, tags in zip(train.texts, train.labels, strict=True):
        for word, tag in zip(text, tags, strict=True):
            by_word.setdefault(word, Counter())[tag] += 1
    default = _usual_tag(train)
    most_frequent = {word: tags.most_common(1)[0][0] for word, tags in by_word.items()}
    return [
        Prediction([most_frequent.get(word, default) for word in text], None) for text in test.texts
    ]
