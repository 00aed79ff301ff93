"""Where a model is wrong: its worst answers, and which labels it takes for which. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from trainers import metrics
from trainers.examples import Examples
from trainers.task_types.base import Prediction
from workflows.report.wording import cut, number

MOST_LABELS = 12
"""A larger confusion matrix is read by nobody; what is rarer is put together."""

OTHERS = "all others"

_TEXT_CHARACTERS = 280
_ANSWER_CHARACTERS = 120
_WORDS_BEFORE, _WORDS_SHOWN, _WRONG_WORDS = 12, 40, 4

Part = tuple[str, bool]
"""A piece of a text, and whether the mistake is there."""


@dataclass(frozen=True)
class Mistake:
    """A row, what is true of it and what was said."""

    text: list[Part]
    pair: str
    """Its second text; empty where it has none."""
    truth: str
    said: str
    score: float | None
    """How bad it is, by `Mistakes.measure`; None where nobody measured."""


@dataclass(frozen=True)
class Mistakes:
    """The worst of all wrong rows."""

    worst: list[Mistake]
    wrong: int
    rows: int
    measure: str
    """What `Mistake.score` is."""


@dataclass(frozen=True)
class Confusion:
    """How often each true label, a row, was taken for each label, a column."""

    labels: list[str]
    counts: list[list[int]]

    @property
    def most_frequent(self) -> tuple[str, str, int] | None:
        """True label, label said, how often: of the commonest mistake; None without one."""
        found = [
            (count, true, said)
            for true, row in enumerate(self.counts)
            for said, count in enumerate(row)
            if true != said and count
        ]
        if not found:
            return None
        count, true, said = max(found)
        return self.labels[true], self.labels[said], count


def worst(
    task: Mapping[str, Any],
    labels: Sequence[str],
    examples: Examples,
    found: Sequence[Prediction],
    most: int,
) -> Mistakes:
    """The worst answers of a model to labelled rows, the worst first.

    Args:
        task: its section, as records keep it.
        labels: names of all labels, in the order of their probabilities.
        examples: the rows.
        found: what was said of each.
        most: mistakes that are shown.
    """
    measure, judged = _judged(task, labels, examples.labels, found)
    order = sorted(judged, key=lambda row: -judged[row])
    return Mistakes(
        worst=[_mistake(task, examples, found, row, judged[row]) for row in order[:most]],
        wrong=len(judged),
        rows=len(examples),
        measure=measure,
    )


def confusion(
    task: Mapping[str, Any], truth: Sequence[Any], found: Sequence[Prediction]
) -> Confusion | None:
    """Which labels are taken for which, of texts or words; None where each has not one label."""
    said = [one.label for one in found]
    match task["type"]:
        case "classification" if not task["multi_label"]:
            return _counted(truth, said)
        case "token_classification":
            return _counted(list(chain(*truth)), list(chain(*said)))
    return None


def _counted(truth: Sequence[str], said: Sequence[str]) -> Confusion:
    frequent = Counter(chain(truth, said)).most_common()
    kept = sorted(name for name, _ in frequent[:MOST_LABELS])
    places = {name: place for place, name in enumerate(kept)}
    has_others = len(frequent) > MOST_LABELS
    size = len(kept) + has_others
    counts = [[0] * size for _ in range(size)]
    for true, claimed in zip(truth, said, strict=True):
        counts[places.get(true, len(kept))][places.get(claimed, len(kept))] += 1
    return Confusion([*kept, OTHERS] if has_others else kept, counts)


def _judged(
    task: Mapping[str, Any],
    labels: Sequence[str],
    truth: Sequence[Any],
    found: Sequence[Prediction],
) -> tuple[str, dict[int, float]]:
    """What is measured, and how bad each wrong row is by it."""
    rows = enumerate(zip(truth, found, strict=True))
    match task["type"]:
        case "regression":
            return "difference", {
                row: abs(true - one.label) for row, (true, one) in rows if true != one.label
            }
        case "token_classification":
            return "probability of the worst word's label", {
                row: max(one.score[word] for word in wrong)
                for row, (true, one) in rows
                if (wrong := _wrong_words(true, one.label))
            }
        case "question_answering":
            return "F1 with the best true answer", {
                row: -_f1(true["answers"], one.label)
                for row, (true, one) in rows
                if one.label not in true["answers"]
            }
        case "generation":
            return "loss of the true answer, in nats a token", {
                row: one.loss or 0.0
                for row, (true, one) in rows
                if one.label.strip() != true.strip()
            }
        case _ if task["multi_label"]:
            return "how sure of the worst label", {
                row: _wrong_sureness(labels, true, one)
                for row, (true, one) in rows
                if set(true) != set(one.label)
            }
    return "probability of the answer", {
        row: one.score for row, (true, one) in rows if true != one.label
    }


def _wrong_words(truth: Sequence[str], said: Sequence[str]) -> list[int]:
    return [n for n, (true, one) in enumerate(zip(truth, said, strict=True)) if true != one]


def _wrong_sureness(labels: Sequence[str], truth: Sequence[str], found: Prediction) -> float:
    """How sure a model is of a label that it gives and should not, or does not and should."""
    probabilities = dict(zip(labels, found.probabilities or (), strict=True))
    wrong = set(truth) ^ set(found.label)
    return max(
        probabilities[name] if name in found.label else 1.0 - probabilities[name] for name in wrong
    )


def _f1(answers: Sequence[str], said: str) -> float:
    return metrics.of_spans([answers], [said])["f1"]


def _mistake(
    task: Mapping[str, Any],
    examples: Examples,
    found: Sequence[Prediction],
    row: int,
    judged: float,
) -> Mistake:
    text, truth, one = examples.texts[row], examples.labels[row], found[row]
    pair = "" if examples.pairs is None else cut(examples.pairs[row], _TEXT_CHARACTERS)
    if task["type"] == "token_classification":
        return _of_words(text, truth, one, judged)
    if task["type"] == "question_answering":
        start, end = truth["start"], truth["start"] + len(truth["answers"][0])
        parts = list(_around(text, start, end))
        return Mistake(parts, pair, _told(truth["answers"][0]), _told(one.label), -judged)
    score = None if task["type"] == "generation" and one.loss is None else judged
    parts = [(cut(text, _TEXT_CHARACTERS), False)]
    return Mistake(parts, pair, _told(truth), _told(one.label), score)


def _of_words(
    words: Sequence[str], truth: Sequence[str], found: Prediction, judged: float
) -> Mistake:
    """A sentence around its worst word, with the words that are wrong marked."""
    wrong = _wrong_words(truth, found.label)
    worst_word = max(wrong, key=lambda word: found.score[word])
    first = max(0, worst_word - _WORDS_BEFORE)
    shown = range(first, min(len(words), first + _WORDS_SHOWN))
    parts = [(words[word], word in wrong) for word in shown]
    parts = [("...", False)] * (first > 0) + parts + [("...", False)] * (shown.stop < len(words))
    named = [word for word in wrong if word in shown][:_WRONG_WORDS]
    named += [worst_word] if worst_word not in named else []
    truth_told, said_told = (
        ", ".join(f"{words[word]}: {labels[word]}" for word in named)
        for labels in (truth, found.label)
    )
    return Mistake(parts, "", _told(truth_told), _told(said_told), judged)


def _around(text: str, start: int, end: int) -> Iterator[Part]:
    """A text around an answer that stands in it."""
    room = max(0, _TEXT_CHARACTERS - (end - start)) // 2
    first, last = max(0, start - room), min(len(text), end + room)
    yield ("... " if first else "") + text[first:start], False
    yield cut(text[start:end], _TEXT_CHARACTERS), True
    yield text[end:last] + (" ..." if last < len(text) else ""), False


def _told(label: Any) -> str:
    if isinstance(label, list):
        label = ", ".join(label)
    return cut(number(label), _ANSWER_CHARACTERS) or "(nothing)"
