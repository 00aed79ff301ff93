"""What makes a version's folder an MLflow model."""

from datetime import datetime

import mlflow
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from trainers.task_config import TaskConfig
from workflows.ledger import Record, stem_of

_LOADER = "trainers.served"
_REQUIRED = ("pretune", "torch", "transformers")


def documents(task: TaskConfig, final: Record) -> dict[str, str]:
    """`MLmodel` and `requirements.txt` by name: the same for the same training.

    Args:
        task: that the model is for; the loader is given it.
        final: the training that made the model.
    """
    model = Model(
        utc_time_created=datetime.fromisoformat(final.finished_at).replace(tzinfo=None),
        model_uuid=stem_of(final.fingerprint),
        signature=_signature(task),
    )
    pyfunc.add_to_model(
        model, loader_module=_LOADER, model_config={"task": task.model_dump(mode="json")}
    )
    versions = {"mlflow": mlflow.__version__, **{name: final.versions[name] for name in _REQUIRED}}
    # A local version, such as 2.13.0+cpu, is in no registry.
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in versions.items()]
    return {"MLmodel": model.to_yaml(), "requirements.txt": "".join(lines)}


def _signature(task: TaskConfig) -> ModelSignature:
    """The columns that `trainers.served` takes and gives."""
    text = label = DataType.string
    score = DataType.double
    if task.type == "token_classification":
        text = Array(DataType.string)
    if task.type == "token_classification" or task.multi_label:
        label, score = Array(DataType.string), Array(DataType.double)
    if task.type == "regression":
        label = DataType.double
    inputs = [ColSpec(text, "text")]
    if task.data.text_pair is not None:
        inputs.append(ColSpec(DataType.string, "text_pair"))
    # Numbers and answers have no score.
    outputs = [ColSpec(label, "prediction"), ColSpec(score, "score", required=False)]
    return ModelSignature(Schema(inputs), Schema(outputs))
