"""How long a saved model takes to answer."""

import time
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from trainers import task_data
from trainers.examples import Examples
from trainers.predict import Predictor
from trainers.retraining import SavedModel

_WARM_UPS = 5
_ANSWERS = 100


@dataclass(frozen=True)
class TimedModel(SavedModel):
    """A saved model and how many rows it is asked about together."""

    batch_size: int


def percentiles(timed: TimedModel) -> tuple[float, float]:
    """Median and 95th percentile of milliseconds from texts to labels, of 100 answers.

    The texts are those of validation rows, in their order. Tokenising counts.
    """
    execution = timed.execution
    predictor = Predictor(
        timed.folder, timed.task, use_gpu=execution.use_gpu, threads=execution.threads
    )
    rows = task_data.load(timed.data, task_data.VALIDATION)
    order = cycle(range(len(rows)))
    took_ms = []
    for number in range(_WARM_UPS + _ANSWERS):
        chosen = list(islice(order, timed.batch_size))
        texts = [rows.texts[row] for row in chosen]
        pairs = None if rows.pairs is None else [rows.pairs[row] for row in chosen]
        started = time.perf_counter()
        predictor.answer(Examples(texts, [], pairs))  # the labels are on the CPU when it returns
        if number >= _WARM_UPS:
            took_ms.append((time.perf_counter() - started) * 1e3)
    median, high = np.percentile(took_ms, [50, 95])
    return float(median), float(high)
