"""What a model said of test rows, kept beside it: models are compared without asking them again."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from trainers.task_types.base import Prediction

FILE = "predictions.parquet"
CONSTANT = "predictions-constant.parquet"
SCRATCH = "predictions-scratch.parquet"
"""Of the model; of what always gives the same answer; of the same network from random weights."""

_TRUTH = "truth"


def write(path: Path, truth: Sequence[Any], found: Sequence[Prediction]) -> None:
    """Write predictions and the true labels, in the order of the rows."""
    rows = [{_TRUTH: label, **asdict(one)} for label, one in zip(truth, found, strict=True)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def read(content: bytes) -> tuple[list[Any], list[Prediction]]:
    """True labels and predictions, of what `write` wrote."""
    rows = pyarrow.parquet.read_table(BytesIO(content)).to_pylist()
    names = [field.name for field in fields(Prediction)]
    return (
        [row[_TRUTH] for row in rows],
        [Prediction(**{name: row[name] for name in names}) for row in rows],
    )
