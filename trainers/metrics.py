"""Task metrics, each from the library that defines it; what rows do not define is left out."""

import unicodedata
import warnings
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_squared_error,
    roc_auc_score,
)

Scores = dict[str, float]

_BINS = 15

_UNSPACED = (
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"),
    ("\u3400", "\u4dbf"),
    ("\u4e00", "\u9fff"),
)


def words(text: str) -> list[str]:
    """The words of a text in any script; single characters where a script parts words by nothing.

    Those are Chinese and Japanese, Thai, Lao, Burmese and Khmer.
    """
    parted = (
        f" {character} "
        if any(low <= character <= high for low, high in _UNSPACED)
        # Marks are vowels, in the scripts of India.
        else character
        if character.isalnum() or unicodedata.category(character)[0] == "M"
        else " "
        for character in text
    )
    return "".join(parted).split()


def of_labels(truth: Sequence[str], found: Sequence[str]) -> Scores:
    """Of one label a row."""
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "macro_f1": float(f1_score(truth, found, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(truth, found, average="micro", zero_division=0)),
        "matthews": float(matthews_corrcoef(truth, found)),
    }


def of_label_sets(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> Scores:
    """Of several labels a row, both of shape (rows, labels); accuracy is that of whole rows."""
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "macro_f1": float(f1_score(truth, found, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(truth, found, average="micro", zero_division=0)),
    }


def of_ranking(truth: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> Scores:
    """Area under the ROC curve, the mean over labels, each against all others.

    A label that all rows have, or none, has no curve and does not count.

    Args:
        truth: which labels the rows have, shape (rows, labels).
        probabilities: of the labels, same shape.
    """
    has_curve = truth.any(axis=0) & ~truth.all(axis=0)
    if not has_curve.any():
        return {}
    areas = roc_auc_score(truth[:, has_curve], probabilities[:, has_curve], average=None)
    return {"auroc": float(np.mean(areas))}


def of_numbers(truth: Sequence[float], found: Sequence[float]) -> Scores:
    """Of a number a row. A constant prediction orders nothing: its correlations are 0."""
    scores = {"mse": float(mean_squared_error(truth, found))}
    if np.ptp(truth) == 0:
        return scores
    if np.ptp(found) == 0:
        return scores | {"pearson": 0.0, "spearman": 0.0}
    return scores | {
        "pearson": float(stats.pearsonr(truth, found).statistic),
        "spearman": float(stats.spearmanr(truth, found).statistic),
    }


def of_spans(truth: Sequence[Sequence[str]], found: Sequence[str]) -> Scores:
    """Of answers, each against the best of those that are right, as SQuAD's script compares them.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, 6.1.
    """
    from torchmetrics.functional.text import squad

    scores = squad(
        [{"id": str(n), "prediction_text": text} for n, text in enumerate(found)],
        [
            {"id": str(n), "answers": {"text": list(right), "answer_start": [0] * len(right)}}
            for n, right in enumerate(truth)
        ],
    )
    return {
        "f1": float(scores["f1"]) / 100.0,
        "exact_match": float(scores["exact_match"]) / 100.0,
    }


def of_texts(truth: Sequence[str], found: Sequence[str]) -> Scores:
    """Of texts that were written: the share that is the same but for outer spaces, ROUGE-L's F.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    from torchmetrics.functional.text import rouge_score

    scores = rouge_score(
        *(list(found), list(truth)),
        rouge_keys="rougeL",
        # The library's own knows the letters a to z alone.
        normalizer=str.lower,
        tokenizer=words,
    )
    same = [one.strip() == other.strip() for one, other in zip(truth, found, strict=True)]
    return {"rouge_l": float(scores["rougeL_fmeasure"]), "exact_match": float(np.mean(same))}


def of_entities(truth: Sequence[list[str]], found: Sequence[list[str]]) -> Scores:
    """Of whole entities, micro-averaged as the CoNLL-2003 script counts them; accuracy of words."""
    from seqeval import metrics as entities

    measures = {
        "entity_f1": entities.f1_score,
        "entity_precision": entities.precision_score,
        "entity_recall": entities.recall_score,
    }
    with warnings.catch_warnings():
        # A model that predicts no entity scores zero; that is an answer, not a mistake.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        scores = {
            name: float(measure(list(truth), list(found), zero_division=0))
            for name, measure in measures.items()
        }
    return scores | {"accuracy": float(accuracy_score(list(chain(*truth)), list(chain(*found))))}


def calibration_error(probabilities: Sequence[Sequence[float]], truth: Sequence[int]) -> float:
    """Expected calibration error of the likeliest labels, 15 bins of equal width.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Args:
        probabilities: of each label, shape (rows, labels).
        truth: the number of each row's true label.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    shares = torch.tensor(probabilities, dtype=torch.float64)
    numbers = torch.tensor(truth)
    return float(multiclass_calibration_error(shares, numbers, shares.shape[1], n_bins=_BINS))
