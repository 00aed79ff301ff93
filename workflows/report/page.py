"""One self-contained HTML file about a run, from the artifacts of its steps."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from trainers import predictions, task_data
from trainers.pretrain_work import FACTS
from workflows.artifacts import Finished
from workflows.config import BASE
from workflows.final import MODEL, RESULT, TRIALS, ranked
from workflows.ledger import Record
from workflows.report import ancestry, charts, growth, mistakes, searched, timeline, wording
from workflows.report.charts import Chart
from workflows.report.headlines import headlines
from workflows.report.scoring import fractions, scores

logger = logging.getLogger(__name__)

MOST_BYTES = 1_900_000
"""A page that would be larger tells less of each task."""

_TEMPLATE = "page.html.j2"
_MANY_DIMENSIONS = 12


@dataclass(frozen=True)
class Detail:
    """How much is told of each task."""

    trials: int
    mistakes: int
    has_charts: bool


DETAILS = (Detail(100, 20, True), Detail(20, 10, True), Detail(10, 5, False), Detail(0, 0, False))
"""The most first."""

_DOCUMENTS = {
    "train": "documents to train on",
    "validation": "documents held out for the validation loss",
    "duplicates": "duplicates left out",
    "held_out": "test texts left out",
    "contaminated": "documents left out that quote a test text",
    "short": "documents left out as too short",
    "malformed": "lines, rows and files that could not be read",
}
_TOKENS = {
    "tokens": "tokens",
    "tokens_per_byte": "tokens per byte",
    "sequences": "training sequences",
    "split_documents": "documents cut",
    "padding_share": "share of padding",
    "dropped_tokens": "tokens dropped",
}
"""Facts of `corpus` and of `tokens`, and how they are told."""
_PARTS = {
    "forward_backward_s": "forward and backward",
    "optimizer_s": "optimizer",
    "data_s": "waiting for data",
    "evaluation_s": "validation",
    "checkpoint_s": "waiting for checkpoints",
    "training_s": "the whole training",
}
"""Seconds of a training by what it was busy with."""
_COURSES = {
    "tokens_per_s": ("Throughput", "tokens per second", 1.0),
    "memory_bytes": ("Peak memory of the first worker", "GB", 1e-9),
    "model_flops_utilisation": ("Share of the peak arithmetic", "share", 1.0),
}
"""Measures of speed by name: title, unit, and what makes it that unit."""


def render(
    pipeline: str,
    steps: Sequence[str],
    finished: Mapping[str, Finished],
    promotions: Mapping[str, Mapping[str, Any]],
    run: str | None = None,
    commit: str | None = None,
) -> str:
    """The page.

    Args:
        pipeline: its name.
        steps: names of all steps, in order.
        finished: those that succeeded, by name.
        promotions: what became of models, by the step that judged them.
        run: that makes the report.
        commit: of the repository with the pipeline file.
    """
    names = [name.removesuffix(".data") for name in steps if name.endswith(".data")]
    records = [finished[name].record for name in steps if name in finished]
    tasks = [
        _task(name, finished, promotions) | _over_tokens(name, finished, records) for name in names
    ]
    results = {task["name"]: task["result"] for task in tasks if task["result"]}
    spans = timeline.spans(records, run)
    costs = timeline.costs(records)
    values = {
        "pipeline": pipeline,
        "run": run,
        "commit": commit,
        "headlines": headlines(names, results, promotions, records, run),
        "tasks": tasks,
        "steps": [(name, finished[name].record if name in finished else None) for name in steps],
        "read_by": ancestry.read_by(records),
        "timeline": charts.timeline(spans) if len(spans) > 1 else None,
        "data": _data(finished.get("corpus"), finished.get("tokens")),
        "sources": ancestry.files(finished["corpus"].record.outside)
        if "corpus" in finished
        else [],
        "pretraining": _pretraining(finished.get("pretrain")),
        "base": finished["base"].record.facts if "base" in finished else None,
        "base_promotion": promotions.get(f"{BASE}.promote"),
        "costs": costs,
        "costs_chart": charts.seconds(costs) if costs else None,
        "chains": _chains(names, finished, records),
        "versions": ancestry.versions(records),
    }
    return _fitting(values)


def _fitting(values: Mapping[str, Any]) -> str:
    """The page with the most detail that it has room for."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for name in ("number", "clock", "size", "plural"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["files"] = ancestry.files
    template = environment.get_template(_TEMPLATE)
    page = ""
    for detail in DETAILS:
        page = template.render(**values, detail=detail, is_short=detail != DETAILS[0])
        # Texts hold addresses. Told like this they look the same, and who searches the page for
        # what it loads finds nothing.
        page = page.replace("://", ":&#47;&#47;")
        if len(page.encode()) <= MOST_BYTES:
            return page
    logger.warning("the report has %d bytes: there are too many tasks", len(page.encode()))
    return page


def _data(corpus: Finished | None, tokens: Finished | None) -> list[tuple[str, Any]]:
    """What became of the documents, as names and values."""
    found: list[tuple[str, Any]] = []
    for step, names in ((corpus, _DOCUMENTS), (tokens, _TOKENS)):
        facts = step.record.facts if step else {}
        found += [(told, facts[name]) for name, told in names.items() if name in facts]
    return found


def _pretraining(step: Finished | None) -> dict[str, Any] | None:
    if step is None or not (step.output / FACTS).is_file():
        return None  # an adopted checkpoint has no history
    found = json.loads((step.output / FACTS).read_text(encoding="utf-8"))
    facts = step.record.facts
    return {
        "facts": facts,
        "charts": _pretraining_charts(found["history"], found.get("speeds", [])),
        "seconds": [(told, facts[name]) for name, told in _PARTS.items() if name in facts],
        "gang": timeline.gang_s(facts),
        "rollbacks": facts.get("rollbacks", []),
        "branches": facts.get("branches", []),
        "skipped_steps": facts.get("skipped_steps", 0),
        "memory": facts.get("memory_bytes_per_rank", []),
    }


def _pretraining_charts(
    points: Sequence[Mapping[str, float]], speeds: Sequence[Mapping[str, float]]
) -> list[Chart]:
    if not points:
        return []
    found = [charts.losses(points)]
    for name, title in (("learning_rate", "Learning rate"), ("gradient_norm", "Gradient norm")):
        there = [(point["tokens"], point[name]) for point in points if name in point]
        if there:
            found.append(charts.course(title, title.lower(), *zip(*there, strict=True)))
    tokens = {point["optimizer_step"]: point["tokens"] for point in points}
    for name, (title, unit, factor) in _COURSES.items():
        there = [
            (tokens[speed["optimizer_step"]], speed[name] * factor)
            for speed in speeds
            if name in speed and speed["optimizer_step"] in tokens
        ]
        if there:
            found.append(charts.course(title, unit, *zip(*there, strict=True)))
    return found


def _task(
    name: str, finished: Mapping[str, Finished], promotions: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All that is told of a task; None for what it did not get to."""
    search = _search(name, finished.get(f"{name}.tune"))
    test = _test(name, finished.get(f"{name}.data"), finished.get(f"{name}.final"))
    return {
        "name": name,
        "metric": test["metric"] or search["metric"] or "",
        "promotion": promotions.get(f"{name}.promote"),
        "trials": search["trials"],
        "trials_charts": search["charts"],
        "importance": search["importance"],
        "is_of_words": test["kind"] == "token_classification",
        **{key: value for key, value in test.items() if key not in ("metric", "kind")},
    }


def _search(name: str, tune: Finished | None) -> dict[str, Any]:
    if tune is None:
        return {"metric": None, "trials": [], "charts": [], "importance": None}
    trials = json.loads((tune.output / TRIALS).read_text(encoding="utf-8"))
    metric = tune.record.spec["task"]["metric"]
    mattered = searched.importance(trials, metric)
    found = _search_charts(name, metric, trials)
    if mattered:
        told = (mattered.names, mattered.means, mattered.spreads)
        found.append(charts.importance(name, metric, *told))
    return {
        "metric": metric,
        "trials": ranked(trials, metric),
        "charts": found,
        "importance": mattered,
    }


def _search_charts(name: str, metric: Any, trials: Sequence[searched.Trial]) -> list[Chart]:
    with_score = searched.scored(trials, metric)
    if not with_score:
        return []
    curves = [[e[metric] for e in trial["history"] if metric in e] for trial in with_score]
    found = [charts.learning_curves(name, metric, curves)]
    if len(with_score) == 1:
        return found
    each = [searched.score(trial, metric) for trial in with_score]
    best = searched.best_so_far(with_score, metric)
    found.append(charts.best_so_far(name, metric, each, best))
    dimensions = searched.varying(with_score)[:_MANY_DIMENSIONS]
    if dimensions:
        sign = searched.sign_of(metric)
        found.append(charts.parallel(name, metric, dimensions, each, sign))
    return found


def _over_tokens(
    name: str, finished: Mapping[str, Finished], records: Sequence[Record]
) -> dict[str, Any]:
    """What the base was worth while it was pretrained; nothing where nobody looked."""
    metric = growth.metric_of(name, records)
    looks = growth.points(name, metric, records) if metric else []
    if metric is None or not looks:
        return {"over_tokens": None, "over_tokens_chart": None, "chosen_base": None}
    tune, base = finished.get(f"{name}.tune"), finished.get(f"{name}.base")
    trials = json.loads((tune.output / TRIALS).read_text(encoding="utf-8")) if tune else []
    scores = [searched.score(trial, metric) for trial in searched.scored(trials, metric)]
    return {
        "over_tokens": growth.told(looks, scores, metric, searched.sign_of(metric)),
        "over_tokens_chart": charts.over_tokens(name, metric, looks, growth.law(looks)),
        "chosen_base": base.record.facts if base else None,
    }


def _test(name: str, data: Finished | None, final: Finished | None) -> dict[str, Any]:
    """What the test rows showed."""
    found: dict[str, Any] = {"metric": None, "result": None, "scores": [], "fractions": []}
    found["kind"] = final.record.spec["task"]["type"] if final else None
    found |= {"scores_chart": None, "fractions_chart": None, "mistakes": None, "confusion": None}
    if final is None:
        return found
    result = json.loads((final.output / RESULT).read_text(encoding="utf-8"))
    metric, of_fractions, of_methods = result["metric"], fractions(result), scores(result)
    found |= {"metric": metric, "result": result, "scores": of_methods, "fractions": of_fractions}
    found["again_test"] = fmean(s[metric] for s in result["seeds"]["pretrained"])
    found["scores_chart"] = charts.scores(name, metric, of_methods)
    if of_fractions:
        found["fractions_chart"] = charts.fractions(name, metric, of_fractions)
    return found | (_answers(data, final) if data else {})


def _answers(data: Finished, final: Finished) -> dict[str, Any]:
    """Where the model is wrong; nothing where it was tested on other rows than there are now."""
    path = final.output / MODEL / predictions.FILE
    if not path.is_file():
        return {}
    truth, found = predictions.read(path.read_bytes())
    examples = task_data.load(data.output, task_data.TEST)
    if truth != examples.labels:
        return {}
    task = final.record.spec["task"]
    labels = task_data.load_labels(data.output)
    return {
        "mistakes": mistakes.worst(task, labels, examples, found, DETAILS[0].mistakes),
        "confusion": mistakes.confusion(task, truth, found),
    }


def _chains(
    names: Sequence[str], finished: Mapping[str, Finished], records: Sequence[Record]
) -> list[tuple[str, list[Record]]]:
    """Of each model that was judged, or as far as its task came, the steps it rests on."""
    found = []
    for name in [*names, BASE]:
        kinds = ("promote", "final", "tune", "data")
        last = next((finished[f"{name}.{k}"] for k in kinds if f"{name}.{k}" in finished), None)
        if last is not None:
            found.append((name, ancestry.chain(last.record, records)))
    return found
