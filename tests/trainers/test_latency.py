from pathlib import Path
from typing import Any

import pytest
from conftest import save_classifier, write_classification

from trainers import latency, task_data
from trainers.examples import Examples
from trainers.latency import TimedModel
from trainers.predict import Predictor
from trainers.task_config import TaskConfig
from trainers.task_inputs import TrialExecution
from trainers.task_types import class_of
from trainers.task_types.base import Prediction


@pytest.mark.parametrize("batch_size", [1, 7])
def test_so_many_rows_are_asked_about_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    write_classification(tmp_path / "rows.csv", rows=40)
    section: dict[str, Any] = {
        "type": "classification",
        "metric": "accuracy",
        "data": {"path": "rows.csv", "split": {"test": 0.2, "validation": 0.2}},
    }
    task = TaskConfig.model_validate(section)
    data = tmp_path / "data"
    data.mkdir()
    task_data.prepare(task.data, class_of(task.type, multi_label=False), tmp_path, data)
    folder = save_classifier(tmp_path / "model", ("bad", "good"))
    asked: list[Examples] = []
    answer = Predictor.answer

    def counted(self: Predictor, examples: Examples) -> list[Prediction]:
        asked.append(examples)
        return answer(self, examples)

    monkeypatch.setattr(Predictor, "answer", counted)
    execution = TrialExecution(threads=1, use_gpu=False)
    median, high = latency.percentiles(TimedModel(folder, task, data, execution, batch_size))
    assert 0 < median <= high
    assert {len(examples) for examples in asked} == {batch_size}
    validation = task_data.load(data, task_data.VALIDATION).texts
    assert asked[0].texts == validation[:batch_size]
    assert {text for examples in asked for text in examples.texts} == set(validation)
