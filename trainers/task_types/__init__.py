"""The types of tasks, one class each."""

from collections.abc import Sequence

from trainers.task_config import TaskConfig
from trainers.task_types.answers import QuestionAnswering
from trainers.task_types.base import TaskType
from trainers.task_types.classification import Classification, MultiLabel
from trainers.task_types.generation import Generation
from trainers.task_types.regression import Regression
from trainers.task_types.words import TokenClassification

__all__ = ["TaskType", "class_of", "type_of"]


def class_of(name: str, *, multi_label: bool) -> type[TaskType]:
    """The class of a task's `type`."""
    if name == "classification" and multi_label:
        return MultiLabel
    return {
        "classification": Classification,
        "regression": Regression,
        "token_classification": TokenClassification,
        "question_answering": QuestionAnswering,
        "generation": Generation,
    }[name]


def type_of(task: TaskConfig, labels: Sequence[str]) -> TaskType:
    """The type of a task whose label names are known."""
    return class_of(task.type, multi_label=task.multi_label)(task, labels)
