"""What a task's score must be compared with: methods that need no neural network."""

from collections import Counter
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from trainers.metrics import score
from trainers.task_config import TaskConfig
from trainers.tasks import Examples

_INVERSE_REGULARISATIONS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_WORDS = {"ngram_range": (1, 2)}
_CHARACTERS = {"analyzer": "char_wb", "ngram_range": (2, 5)}


def evaluate(
    task: TaskConfig, train: Examples, validation: Examples, test: Examples
) -> dict[str, dict[str, float]]:
    """Test scores by baseline, trained on the rows the model is trained on."""
    predictions: dict[str, list[Any]]
    if task.type == "token_classification":
        predictions = {
            "majority": _majority_tags(train, test),
            "dictionary": _dictionary(train, test),
        }
    else:
        predictions = {
            "majority": _majority(train, test),
            "tf-idf": _tf_idf(_WORDS, task, train, validation, test),
            "tf-idf of characters": _tf_idf(_CHARACTERS, task, train, validation, test),
        }
    return {name: score(task.type, test.labels, found) for name, found in predictions.items()}


def _majority(train: Examples, test: Examples) -> list[str]:
    label = Counter(train.labels).most_common(1)[0][0]
    return [label] * len(test)


def _tf_idf(
    features: dict[str, Any],
    task: TaskConfig,
    train: Examples,
    validation: Examples,
    test: Examples,
) -> list[str]:
    """TF-IDF and logistic regression; its one setting by validation."""

    def fitted(inverse_regularisation: float) -> Pipeline:
        pipeline = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, **features),
            LogisticRegression(C=inverse_regularisation, max_iter=2000),
        )
        return pipeline.fit(train.texts, train.labels)

    def validation_score(pipeline: Pipeline) -> float:
        found = list(pipeline.predict(validation.texts))
        return score(task.type, validation.labels, found)[task.metric]

    best = max(map(fitted, _INVERSE_REGULARISATIONS), key=validation_score)
    return list(best.predict(test.texts))


def _majority_tags(train: Examples, test: Examples) -> list[list[str]]:
    tag = Counter(tag for tags in train.labels for tag in tags).most_common(1)[0][0]
    return [[tag] * len(words) for words in test.texts]


def _dictionary(train: Examples, test: Examples) -> list[list[str]]:
    """Each word's most frequent tag in training; the most frequent tag of all for new words."""
    by_word: dict[Any, Counter[str]] = {}
    for words, tags in zip(train.texts, train.labels, strict=True):
        for word, tag in zip(words, tags, strict=True):
            by_word.setdefault(word, Counter())[tag] += 1
    default = _majority_tags(train, Examples([[""]], [[""]]))[0][0]
    most_frequent = {word: tags.most_common(1)[0][0] for word, tags in by_word.items()}
    return [[most_frequent.get(word, default) for word in words] for words in test.texts]
