"""A pipeline configuration to its steps: pure. The spec classes are all a stage may know."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.config import SearchConfig
from trainers.config import (
    BaseConfig,
    CorpusConfig,
    ModelConfig,
    Objective,
    Packing,
    PositiveInt,
    Schema,
    TokenizerConfig,
)
from trainers.pretrain_config import PretrainConfig
from trainers.task_config import (
    METRICS_OF_TASK,
    TaskConfig,
    TaskDataConfig,
    TaskType,
)
from workflows.config import BASE, ConfigError, CustomConfig, PipelineConfig, Pretraining
from workflows.drafts import Draft, in_order
from workflows.outside import OutsideData, TaskFiles
from workflows.probe_section import can_be_probed
from workflows.probing import ProbeSpec, branch_drafts, probe_drafts
from workflows.promote_config import PromoteBaseConfig, PromoteConfig
from workflows.steps import CUSTOM, Step
from workflows.suggestions import suggestion
from workflows.task_section import ControlsConfig, FinalConfig

WARM_START = "warm_start."
"""What inputs of `tune` are called that are other tasks' searches."""


class DataSpec(Schema):
    """What `data` knows."""

    type: TaskType
    multi_label: bool
    data: TaskDataConfig
    digests: dict[str, str]
    """Of each file, by the split whose rows it holds: which is which changes what is computed."""


class CorpusSpec(Schema):
    """What `corpus` knows."""

    corpus: CorpusConfig
    digests: list[str]
    """Of each source: which comes first, and which file in it, changes what is computed."""
    made: dict[str, str]
    """Paths below the outputs of the user's own steps, by the input's name."""


class TokenizerSpec(Schema):
    """What `tokenizer` knows."""

    tokenizer: TokenizerConfig
    max_length: int


class TokensSpec(Schema):
    """What `tokens` knows."""

    sequence_length: int
    packing: Packing


class PretrainSpec(Schema):
    """What `pretrain` knows."""

    model: ModelConfig
    pretrain: PretrainConfig
    weights: list[float]
    """Of the corpus' sources."""


class BaseSpec(Schema):
    """What `base` knows."""

    base: BaseConfig
    """`store` with the version that was found."""


class FeaturesSpec(Schema):
    """What `features` knows."""

    task: TaskConfig
    """With a metric and class weights that stand for any: features are the same for all."""


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


class LossesSpec(Schema):
    """What `losses` knows."""

    objective: Objective
    sequence_length: PositiveInt
    documents: PositiveInt
    characters: PositiveInt


class PromoteBaseSpec(Schema):
    """What `promote_base` knows."""

    model: str
    """Name in the store."""
    promote: PromoteBaseConfig


class SummarySpec(Schema):
    """What `report` knows."""

    name: str
    """Of the pipeline."""


class TrackSpec(SummarySpec):
    """What `track` knows."""

    tensorboard: bool


class CustomSpec(Schema):
    """What a step of the user's own knows."""

    uses: str
    """`package.module:function`."""
    files: dict[str, str]
    """SHA-256 of outside files, by the name the function knows them by."""
    spec: dict[str, Any]


def build_steps(
    config: PipelineConfig, outside: OutsideData, *, probes: bool = False
) -> list[Step]:
    """The steps in an order in which each stands behind its inputs.

    Args:
        config: of the pipeline.
        outside: what it reads of the world.
        probes: with a first look at each task that a head can learn; a run has none.

    Raises:
        ConfigError: an input is no step, or steps wait for each other in a circle.
    """
    drafts = _drafts(config, outside)
    if probes and config.probe is None:
        drafts |= {draft.name: draft for draft in _probe_drafts(config)}
    _check_inputs(config, drafts)
    built: dict[str, Step] = {}
    for name in in_order(drafts):
        built[name] = drafts[name].step(built)
    return list(built.values())


def _drafts(config: PipelineConfig, outside: OutsideData) -> dict[str, Draft]:
    drafts = [
        *(_data_draft(name, task, outside.tasks[name]) for name, task in config.tasks.items()),
        *(_custom(name, config.steps[name], outside) for name in config.steps),
        *_base_drafts(config, outside),
        *_branch_drafts(config),
        *(draft for name in config.tasks for draft in _task_drafts(config, name)),
        *_base_promotion_drafts(config),
    ]
    everything = {draft.name: draft.name for draft in drafts}
    track = TrackSpec(name=config.name, tensorboard=config.tensorboard)
    report = SummarySpec(name=config.name)
    drafts += [
        Draft("track", "track", track, everything, runs_on_failure=True),
        Draft("report", "report", report, everything, runs_on_failure=True),
    ]
    for name in config.steps:
        if sum(draft.name == name for draft in drafts) > 1:
            raise ConfigError(f"steps.{name}: the pipeline has a step of this name; take another")
    return {draft.name: draft for draft in drafts}


def _base_drafts(config: PipelineConfig, outside: OutsideData) -> list[Draft]:
    if config.pretraining is not None:
        return _pretraining_drafts(config.pretraining, outside)
    assert outside.base is not None  # one of both is there
    return [Draft("base", "base", BaseSpec(base=outside.base), outside=outside.model)]


def _pretraining_drafts(config: Pretraining, outside: OutsideData) -> list[Draft]:
    corpus: CorpusConfig = config.corpus
    made = {f"source{n}": source for n, source in enumerate(corpus.sources) if source.step}
    sequence_length = config.pretrain.sequence_length
    return [
        Draft(
            "corpus",
            "corpus",
            CorpusSpec(
                corpus=corpus,
                digests=list(outside.sources),
                made={key: source.path for key, source in made.items()},
            ),
            {name: f"{name}.data" for name in corpus.held_out}
            | {key: source.step for key, source in made.items() if source.step},
            outside.corpus,
        ),
        Draft(
            "tokenizer",
            "tokenizer",
            TokenizerSpec(tokenizer=config.tokenizer, max_length=sequence_length),
            {"corpus": "corpus"},
            outside.tokenizer,
        ),
        Draft(
            "tokens",
            "tokens",
            TokensSpec(sequence_length=sequence_length, packing=config.pretrain.packing),
            {"corpus": "corpus", "tokenizer": "tokenizer"},
        ),
        Draft(
            "pretrain",
            "pretrain",
            PretrainSpec(
                model=config.model,
                pretrain=config.pretrain.training,
                weights=[source.weight for source in corpus.sources],
            ),
            {"tokenizer": "tokenizer", "tokens": "tokens"},
            outside.model,
        ),
    ]


def _data_draft(name: str, task: TaskConfig, files: TaskFiles) -> Draft:
    spec = DataSpec(
        type=task.type,
        multi_label=task.multi_label,
        data=task.data,
        digests={split: digest for split, (_, digest) in files.items()},
    )
    return Draft(f"{name}.data", "data", spec, outside=dict(files.values()))


def _inputs_of_task(config: PipelineConfig, name: str) -> dict[str, str]:
    base = "pretrain" if config.base is None else "base"
    if config.tasks[name].base == "best_probe":
        base = f"{name}.base"
    return {"data": f"{name}.data", "base": base}


def _branch_drafts(config: PipelineConfig) -> Iterator[Draft]:
    """Looks at the base while it is pretrained, and the models on its way that they look at."""
    if config.probe is None or config.pretrain is None:
        return
    branches = list(branch_drafts(config.pretrain))
    yield from branches
    suffixes = {f"-{draft.name.rpartition('-')[2]}": draft.name for draft in branches}
    yield from probe_drafts(config.probe, config.tasks, suffixes)


def _probe_drafts(config: PipelineConfig) -> Iterator[Draft]:
    for name, of in config.tasks.items():
        if can_be_probed(of):
            spec = ProbeSpec(task=of.task)
            yield Draft(f"{name}.probe", "probe", spec, _inputs_of_task(config, name))


def _task_drafts(config: PipelineConfig, name: str) -> list[Draft]:
    of, task = config.tasks[name], config.tasks[name].task
    inputs = _inputs_of_task(config, name)
    features, of_tune = (
        [],
        {f"{WARM_START}{other}": f"{other}.tune" for other in of.search.warm_start},
    )
    if "head" in of.values_of("method"):
        any_metric = {"metric": METRICS_OF_TASK[task.type][0], "class_weights": None}
        spec = FeaturesSpec(task=task.model_copy(update=any_metric))
        features = [Draft(f"{name}.features", "features", spec, inputs)]
        of_tune["features"] = f"{name}.features"
    return [
        *features,
        Draft(
            f"{name}.tune",
            "tune",
            TuneSpec(task=task, search=config.searches[name], max_epochs=of.max_epochs),
            inputs | of_tune,
        ),
        Draft(
            f"{name}.final",
            "final",
            FinalSpec(task=task, final=of.final, controls=of.controls),
            {**inputs, "tune": f"{name}.tune"},
        ),
        Draft(
            f"{name}.promote",
            "promote",
            PromoteSpec(model=f"{config.name}.{name}", task=task, promote=of.promote),
            {"data": f"{name}.data", "final": f"{name}.final"},
        ),
    ]


def _base_promotion_drafts(config: PipelineConfig) -> list[Draft]:
    found = config.pretraining
    if found is None or found.pretrain.promote is None:
        return []
    promote = found.pretrain.promote
    losses = LossesSpec(
        objective=found.model.objective,
        sequence_length=found.pretrain.sequence_length,
        documents=promote.documents,
        characters=promote.characters,
    )
    judged = PromoteBaseSpec(model=f"{config.name}.{BASE}", promote=promote)
    return [
        Draft(f"{BASE}.losses", "losses", losses, {"pretrain": "pretrain", "corpus": "corpus"}),
        Draft(
            f"{BASE}.promote",
            "promote_base",
            judged,
            {"pretrain": "pretrain", "losses": f"{BASE}.losses"},
        ),
    ]


def _custom(name: str, custom: CustomConfig, outside: OutsideData) -> Draft:
    found = outside.custom[name]
    return Draft(
        name,
        CUSTOM,
        CustomSpec(
            uses=custom.uses,
            files={key: digest for key, (_, digest) in found.items()},
            spec=custom.spec,
        ),
        {other: other for other in custom.inputs},
        dict(found.values()),
        version=custom.version,
        resources=custom.resources,
    )


def _check_inputs(config: PipelineConfig, drafts: Mapping[str, Draft]) -> None:
    named = [
        (f"steps.{name}.inputs", other)
        for name, custom in config.steps.items()
        for other in custom.inputs
    ]
    named += [
        (f"corpus.sources.{n}.step", source.step)
        for n, source in enumerate(config.corpus.sources if config.corpus else ())
        if source.step
    ]
    for name, task in config.tasks.items():
        for other in task.search.warm_start:
            if other not in config.tasks:
                raise ConfigError(
                    f"tasks.{name}.search.warm_start: no task {other!r}"
                    f"{suggestion(other, config.tasks)}"
                )
    named += [("cluster.steps", name) for name in config.cluster.steps]
    for place, name in named:
        if name not in drafts:
            raise ConfigError(f"{place}: no step {name!r}{suggestion(name, drafts)}")
