"""A pipeline configuration to its steps: pure. The spec classes are all a stage may know."""

from cluster.config import SearchConfig
from trainers.config import (
    CorpusConfig,
    ModelConfig,
    PretrainConfig,
    Schema,
    TaskConfig,
    TokenizerConfig,
)
from workflows.config import ControlsConfig, FinalConfig, PipelineConfig, PromoteConfig
from workflows.outside import OutsideData
from workflows.steps import Step

# Raise a stage's number when its output changes for the same spec and inputs.
STAGE_VERSIONS = {
    "data": 1,
    "corpus": 1,
    "tokenizer": 1,
    "tokens": 1,
    "pretrain": 1,
    "tune": 1,
    "final": 1,
    "promote": 1,
    "report": 1,
    "track": 1,
}


class TokenizerSpec(Schema):
    """What `tokenizer` knows."""

    tokenizer: TokenizerConfig
    max_length: int


class TokensSpec(Schema):
    """What `tokens` knows."""

    sequence_length: int


class PretrainSpec(Schema):
    """What `pretrain` knows."""

    model: ModelConfig
    pretrain: PretrainConfig


class TuneSpec(Schema):
    """What `tune` knows."""

    task: TaskConfig
    search: SearchConfig
    max_epochs: int


class FinalSpec(Schema):
    """What `final` knows."""

    task: TaskConfig
    final: FinalConfig
    controls: ControlsConfig


class PromoteSpec(Schema):
    """What `promote` knows."""

    model: str
    """Name in the store."""
    task: TaskConfig
    promote: PromoteConfig


class SummarySpec(Schema):
    """What `report` and `track` know."""

    name: str
    """Of the pipeline."""


def build_steps(config: PipelineConfig, outside: OutsideData) -> list[Step]:
    """The steps in an order in which each stands behind its inputs."""
    data = {
        name: _step(f"{name}.data", "data", task.data, outside=dict(outside.tasks[name]))
        for name, task in config.tasks.items()
    }
    base = _base_steps(config, outside, data)
    tasks = [step for name in config.tasks for step in _task_steps(config, name, data, base)]
    steps = [*data.values(), *base, *tasks]
    summary = SummarySpec(name=config.name)
    inputs = {step.name: step for step in steps}
    return [
        *steps,
        _step("track", "track", summary, inputs, runs_on_failure=True),
        _step("report", "report", summary, inputs, runs_on_failure=True),
    ]


def _base_steps(
    config: PipelineConfig, outside: OutsideData, data: dict[str, Step]
) -> tuple[Step, Step, Step, Step]:
    corpus_spec: CorpusConfig = config.corpus
    held_out = {name: data[name] for name in corpus_spec.held_out}
    corpus = _step("corpus", "corpus", corpus_spec, held_out, dict(outside.corpus))
    sequence_length = config.pretrain.sequence_length
    tokenizer = _step(
        "tokenizer",
        "tokenizer",
        TokenizerSpec(tokenizer=config.tokenizer, max_length=sequence_length),
        {"corpus": corpus},
        dict(outside.tokenizer),
    )
    tokens = _step(
        "tokens",
        "tokens",
        TokensSpec(sequence_length=sequence_length),
        {"corpus": corpus, "tokenizer": tokenizer},
    )
    pretrain = _step(
        "pretrain",
        "pretrain",
        PretrainSpec(model=config.model, pretrain=config.pretrain),
        {"tokenizer": tokenizer, "tokens": tokens},
        dict(outside.model),
    )
    return corpus, tokenizer, tokens, pretrain


def _task_steps(
    config: PipelineConfig, name: str, data: dict[str, Step], base: tuple[Step, ...]
) -> tuple[Step, Step, Step]:
    pipeline_task, task = config.tasks[name], config.tasks[name].task
    inputs = {"data": data[name], "pretrain": base[-1]}
    tune = _step(
        f"{name}.tune",
        "tune",
        TuneSpec(task=task, search=pipeline_task.search, max_epochs=pipeline_task.max_epochs),
        inputs,
    )
    final = _step(
        f"{name}.final",
        "final",
        FinalSpec(task=task, final=pipeline_task.final, controls=pipeline_task.controls),
        {**inputs, "tune": tune},
    )
    promote = _step(
        f"{name}.promote",
        "promote",
        PromoteSpec(model=f"{config.name}.{name}", task=task, promote=pipeline_task.promote),
        {"data": data[name], "final": final},
    )
    return tune, final, promote


def _step(
    name: str,
    kind: str,
    spec: Schema,
    inputs: dict[str, Step] | None = None,
    outside: dict[str, str] | None = None,
    *,
    runs_on_failure: bool = False,
) -> Step:
    return Step(
        name=name,
        kind=kind,
        version=STAGE_VERSIONS[kind],
        spec=spec,
        inputs=inputs or {},
        outside=outside or {},
        runs_on_failure=runs_on_failure,
    )
