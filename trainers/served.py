"""What MLflow loads a version with: the flavour `python_function` of its `MLmodel` names this."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from trainers.predict import Predictor
from trainers.task_config import TaskConfig


class Served:
    """A fine-tuned model that takes and gives tables."""

    def __init__(self, folder: Path, task: TaskConfig) -> None:
        self._predictor = Predictor(folder, task)

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Columns `prediction` and `score`, in the forms of the task, a row for each of `frame`.

        Args:
            frame: column `text`, of strings or of lists of words; where the task compares two,
                `text_pair`.
            params: MLflow's; no model of ours has any.
        """
        texts = [text if isinstance(text, str) else list(text) for text in frame["text"]]
        pairs = list(frame["text_pair"]) if "text_pair" in frame else None
        found = self._predictor.predict(texts, pairs)
        told = {"prediction": [one.label for one in found], "score": [one.score for one in found]}
        return pd.DataFrame(told)


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> Served:
    """MLflow's way in; the task is what `workflows/mlmodel.py` wrote down."""
    return Served(Path(path), TaskConfig.model_validate(model_config["task"]))
