"""The steps `probe` and `best_probe`: a first look at a task, and the base that looked best."""

from collections.abc import Mapping
from typing import Any

from trainers import bases
from trainers import probe as probes
from trainers.task_config import Metric, merit_of
from workflows.execution import StageContext
from workflows.probing import BASE, PROBE, BestProbeSpec, ProbeSpec
from workflows.trainings import execution_of


def look(context: StageContext) -> Mapping[str, Any]:
    """A first look at a task, as facts alone."""
    spec, trial = context.spec(ProbeSpec), context.run.execution.trials
    work = probes.Probe(
        spec.task,
        context.input("base"),
        context.input("data"),
        spec.rows,
        execution_of(trial),
    )
    function = context.exchange().mapped(probes.look)
    (found,) = context.run.cluster.map(function, [work], trial, context.log)
    facts: Mapping[str, Any] = found
    return facts


def choose(context: StageContext) -> Mapping[str, Any]:
    """The base above which a head was best on validation rows; of equal ones the latest."""
    metric = context.spec(BestProbeSpec).metric
    scores = {
        name.removeprefix(PROBE): record.facts["head"]
        for name, record in context.records.items()
        if name.startswith(PROBE)
    }
    tokens = {name: context.records[f"{BASE}{name}"].facts["tokens"] for name in scores}
    best = best_of(metric, scores, tokens)
    taken = bases.take_in(context.input(f"{BASE}{best}"), context.output)
    return {**taken, "chosen": best, "tokens": tokens[best], metric: scores[best][metric]}


def best_of(
    metric: Metric, scores: Mapping[str, Mapping[str, float]], tokens: Mapping[str, int]
) -> str:
    """The name with the best score; of equal ones that which has seen the most tokens. Pure."""
    return max(scores, key=lambda name: (merit_of(metric, scores[name]), tokens[name]))
