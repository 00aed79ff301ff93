"""The pipeline file: the leaves' schemas composed and cross-checked, errors to act on."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cluster.config import ClusterConfig, GangConfig, SearchConfig, TrialConfig, WorkerConfig
from trainers.config import (
    POSITION_FIELDS,
    WHERE,
    BaseConfig,
    CorpusConfig,
    ModelConfig,
    PositiveInt,
    Schema,
    TokenizerConfig,
)
from workflows import probe_section
from workflows.budget import BudgetConfig
from workflows.pretrain_section import PipelinePretrain
from workflows.probe_section import ProbesConfig
from workflows.storage import PROTOCOLS, scheme_of
from workflows.suggestions import suggestion
from workflows.task_section import PipelineTask

BASE = "base"
"""What the pretrained model is called in the store, behind the pipeline's name."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


class ConfigError(ValueError):
    """The pipeline file cannot be used; the message names every place and a way out."""


class CustomConfig(Schema):
    """A step of the user's own: a function of theirs, kept, reused and resumed like any other."""

    uses: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`package.module:function`; found from the pipeline file's folder, or installed."""

    inputs: list[str] = []
    """Steps whose output folders it reads."""

    files: Annotated[dict[Name, str], WHERE] = {}
    """Outside files or folders it reads, by a name; paths are relative to the pipeline file."""

    spec: dict[str, Any] = {}
    """Whatever the function wants to know."""

    version: PositiveInt = 1
    """Raise it when the function's output changes for the same spec and inputs."""

    resources: WorkerConfig = WorkerConfig()
    """What its process is given; no part of the step's identity."""


class Pretraining(NamedTuple):
    """The sections that make a base."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    pretrain: PipelinePretrain


_ALONE = {
    "gradual_unfreezing": "DeepSpeed decides at the start which weights are trained",
    "prefix_loss": "it looks into the model, which is spread over the workers",
}
"""Hyperparameters that only a trial of one worker has, and why."""


class PipelineConfig(Schema):
    """A whole pipeline: what is computed above, where it runs in `cluster`."""

    name: Name
    """A label; models are called `<name>.<task>`, and the pretrained one `<name>.base`."""

    storage: str = "./pretune-data"
    """A folder all nodes see (relative to where you are), or s3://, gs://, abfs://."""

    base: BaseConfig | None = None
    """The model that is fine-tuned; absent, it is pretrained, which the next four sections say."""

    corpus: CorpusConfig | None = None
    """Text to pretrain on."""

    tokenizer: TokenizerConfig | None = None
    """How text becomes tokens; that of `model.from` when absent."""

    model: ModelConfig | None = None
    """The network."""

    pretrain: PipelinePretrain | None = None
    """Self-supervised training."""

    tasks: dict[Name, PipelineTask]
    """Downstream tasks by name."""

    budget: BudgetConfig | None = None
    """What all searches together may spend."""

    probe: ProbesConfig | None = None
    """Looks at what the base is worth on each task, while it is pretrained."""

    steps: dict[Name, CustomConfig] = {}
    """Steps of your own, by name."""

    tensorboard: bool = False
    """Whether curves are written for TensorBoard, too: `runs/RUN/tensorboard` of the storage."""

    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""

    @property
    def pretraining(self) -> Pretraining | None:
        """What makes the base; None where it is there already."""
        if not (self.corpus and self.tokenizer and self.model and self.pretrain):
            return None
        return Pretraining(self.corpus, self.tokenizer, self.model, self.pretrain)

    @property
    def searches(self) -> dict[str, SearchConfig]:
        """By task, each within the budget of all."""
        asked = {name: task.search for name, task in self.tasks.items()}
        return self.budget.shared(asked) if self.budget else asked

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_of_the_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and "tokenizer" not in data:
            model = data.get("model")
            folder = model.get("from") if isinstance(model, dict) else None
            if isinstance(folder, str):
                return {**data, "tokenizer": {"from": folder}}
        return data

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = [
            *_base_problems(self),
            *_trial_problems(self.tasks, self.cluster.trials),
            *probe_section.problems(self.probe, self.tasks, self.pretrain),
        ]
        if self.budget is not None:
            asked = {name: task.search for name, task in self.tasks.items()}
            problems += self.budget.problems(asked)
        if self.pretraining is not None:
            problems += [
                *_position_problems(self.pretraining, self.tasks),
                *_model_problems(self.pretraining, self.tasks),
                *_held_out_problems(self.pretraining, self.tasks),
                *_gang_problems(self.pretraining, self.cluster.pretrain),
            ]
        if BASE in self.tasks:
            problems.append(
                f"tasks.{BASE}: {self.name}.{BASE} is what a pretrained model is called; take "
                "another name"
            )
        scheme = scheme_of(self.storage)
        if scheme is not None and scheme not in PROTOCOLS:
            known = ", ".join(f"{name}://" for name in PROTOCOLS)
            problems.append(f"storage: {scheme}:// is not known; give a folder or one of {known}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a pipeline file.

    Args:
        path: the YAML file.
        overrides: `a.b=c`, each setting one value, written as YAML.

    Raises:
        ConfigError: tells everything that is wrong, with places.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(root, path)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a pipeline file is a mapping; see examples/demo.yaml")
    for override in overrides:
        _apply(data, override)
    try:
        return PipelineConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_told(error, path, root))) from None


def _told(error: ValidationError, path: Path, root: yaml.Node | None) -> Iterable[str]:
    """One line a problem: file, line, key, what is wrong, the nearest valid key."""
    for problem in error.errors(include_url=False):
        place = [part for part in problem["loc"] if not _is_union_branch(part)]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            valid = _keys_at(place[:-1])
            message = f"unknown key{suggestion(str(place[-1]), valid)}"
        elif problem["type"] == "missing":
            message = "is required"
        elif problem["type"] != "value_error":
            message = f"{message} (got {problem['input']!r})"
        key = ".".join(map(str, place))
        yield f"{path}:{_line(root, place)}: {key + ': ' if key else ''}{message}"


def _is_union_branch(part: str | int) -> bool:
    """Pydantic puts the tried type of a union into an error's place; no user wrote that."""
    return isinstance(part, str) and bool(
        re.match(r"^(Range|Branches|WorkerRange|constrained-|literal\[|list\[|function-)", part)
    )


def _keys_at(place: Sequence[str | int]) -> list[str]:
    """The valid keys at a place in the file."""
    annotation: Any = PipelineConfig
    for part in place:
        schema = _schema_in(annotation)
        if get_origin(annotation) in (dict, list):
            annotation = schema  # the part is a key or an index
        elif schema is not None and str(part) in schema.model_fields:
            annotation = schema.model_fields[str(part)].annotation
        else:
            return []
    schema = _schema_in(annotation)
    return [f.alias or name for name, f in schema.model_fields.items()] if schema else []


def _schema_in(annotation: Any) -> Any:
    """The schema inside an annotation such as `dict[Name, PipelineTask]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [schema for inner in get_args(annotation) if (schema := _schema_in(inner))]
    return found[0] if found else None


def _line(root: yaml.Node | None, place: Sequence[str | int]) -> int:
    """The line of the deepest part of `place` that stands in the file, counted from 1."""
    node, line = root, 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if entry is None:
                return line
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    """YAML's loader would keep the last of two equal keys and say nothing."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}:{line}: {key.value}: this key stands here twice")
            seen.add(key.value)
            _refuse_repeated_keys(value, path)


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example pretrain.seed=1")
    *parents, last = key.split(".")
    section = data
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {parent} is no section")
    section[last] = yaml.safe_load(value)


def _base_problems(config: PipelineConfig) -> Iterable[str]:
    given = {name: getattr(config, name) is not None for name in Pretraining._fields}
    if config.base is None:
        for name in (name for name, is_given in given.items() if not is_given):
            yield f"{name}: is required, unless base names a model that is there already"
        return
    given["cluster.pretrain"] = config.cluster.pretrain != GangConfig()
    for name in (name for name, is_given in given.items() if is_given):
        yield f"{name}: does nothing beside base, which is fine-tuned as it is; drop one"


def _position_problems(config: Pretraining, tasks: Mapping[str, PipelineTask]) -> Iterable[str]:
    if config.model.from_:
        return  # the checkpoint's own positions are checked where it is read
    stated = next(
        (config.model.config[f] for f in POSITION_FIELDS if f in config.model.config), None
    )
    positions = stated or config.pretrain.sequence_length
    lengths: dict[str, int] = {"pretrain.sequence_length": config.pretrain.sequence_length}
    lengths |= {f"tasks.{name}.max_length": task.max_length for name, task in tasks.items()}
    for place, length in lengths.items():
        if length > positions:
            raises = "raise" if stated else "set"
            yield (
                f"{place} {length} is longer than the model's {positions} positions; lower it or "
                f"{raises} model.config.max_position_embeddings"
            )


def _model_problems(config: Pretraining, tasks: Mapping[str, PipelineTask]) -> Iterable[str]:
    for name, task in tasks.items():
        if task.type == "generation" and config.model.objective == "masked":
            yield (
                f"tasks.{name}: type generation needs model.objective: causal; a model that fills "
                "gaps does not write"
            )
    if config.model.from_ and config.tokenizer.train:
        yield (
            f"tokenizer.train: {config.tokenizer.train} makes tokens that the model of model.from "
            f"({config.model.from_}) does not know; drop the section tokenizer, then the model's "
            "own is used"
        )
    if config.pretrain.whole_words and config.model.objective == "causal":
        yield (
            "pretrain.whole_words goes with model.objective: masked; the causal objective hides "
            "nothing"
        )


def _held_out_problems(config: Pretraining, tasks: Mapping[str, PipelineTask]) -> Iterable[str]:
    for name in config.corpus.held_out:
        if name not in tasks:
            yield f"corpus.held_out: no task {name!r}{suggestion(name, tasks)}"


def _gang_problems(config: Pretraining, gang: GangConfig) -> Iterable[str]:
    batch = config.pretrain.global_batch_size
    counts = range(gang.least_workers, gang.most_workers + 1)
    uneven = [count for count in counts if batch % count]
    if uneven:
        even = [count for count in counts if batch % count == 0]
        # Ray Train takes any number of the range.
        within = f", only by {', '.join(map(str, even))}" if even else ""
        yield (
            f"a global batch of {batch} sequences cannot be shared evenly by "
            f"{', '.join(map(str, uneven))} workers{within}; "
            "change cluster.pretrain.workers or pretrain.global_batch_tokens"
        )


def _trial_problems(tasks: Mapping[str, PipelineTask], trial: TrialConfig) -> Iterable[str]:
    if trial.workers == 1:
        return
    several = f"cluster.trials.workers: {trial.workers}"
    for name, task in tasks.items():
        for hyperparameter, reason in _ALONE.items():
            if any(task.values_of(hyperparameter)):
                yield f"tasks.{name}: {hyperparameter} does not go with {several}: {reason}"
        if task.search.scheduler == "pbt":
            yield (
                f"tasks.{name}: scheduler: pbt does not go with {several}: every change of a trial "
                "would start its workers anew; take asha"
            )


def as_yaml(config: PipelineConfig) -> str:
    """The whole configuration, defaults included."""
    text = _dumped(config, exclude_none=True)
    if PipelineConfig.model_validate(yaml.safe_load(text)) == config:
        return text
    return _dumped(config, exclude_none=False)  # somewhere null is not the default


def _dumped(config: PipelineConfig, *, exclude_none: bool) -> str:
    data = config.model_dump(mode="json", by_alias=True, exclude_none=exclude_none)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
