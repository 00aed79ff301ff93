"""One self-contained HTML file about a run, from the artifacts of its steps."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2
from matplotlib.figure import Figure

from workflows.artifacts import Finished
from workflows.config import BASE
from workflows.final import ranked

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_CHART_INCHES = (7.2, 3.0)


@dataclass(frozen=True)
class Score:
    """A method's test score, with its spread where it was trained with several seeds."""

    method: str
    mean: float
    spread: float | None
    trainings: int


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
_ORIGINS = {
    "pretrained": "fine-tuned from the base",
    "scratch": "same network from random weights",
}


def render(
    pipeline: str,
    steps: Sequence[str],
    finished: Mapping[str, Finished],
    promotions: Mapping[str, Mapping[str, Any]],
) -> str:
    """The page.

    Args:
        pipeline: its name.
        steps: names of all steps, in order.
        finished: those that succeeded, by name.
        promotions: what became of models, by the step that judged them.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    environment.filters["clock"] = lambda seconds: f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    tasks = [name.removesuffix(".data") for name in steps if name.endswith(".data")]
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        pipeline=pipeline,
        steps=[(name, finished[name].record if name in finished else None) for name in steps],
        data=_data(finished.get("corpus"), finished.get("tokens")),
        pretraining=_pretraining(finished.get("pretrain")),
        base=finished["base"].record.facts if "base" in finished else None,
        base_promotion=promotions.get(f"{BASE}.promote"),
        tasks=[_task(name, finished, promotions) for name in tasks],
    )


def scores(result: Mapping[str, Any]) -> list[Score]:
    """Test scores by method, best first, out of a `final.json`."""
    metric = result["metric"]
    found = [
        _over_seeds(told, [s[metric] for s in result["seeds"][origin]])
        for origin, told in _ORIGINS.items()
        if result["seeds"][origin]
    ]
    found += [
        Score(name, s[metric], None, 1)
        for name, s in result["baselines"].items()
        if metric in s  # the loss of a true answer is a model's alone
    ]
    return sorted(found, key=lambda score: score.mean, reverse=not result["lower_is_better"])


def fractions(result: Mapping[str, Any]) -> list[tuple[int, list[Score]]]:
    """Number of labels, and test scores, out of a `final.json`.

    With the base, without, and of the method that is best of those without a network, given all
    labels.
    """
    metric, found = result["metric"], []
    rivals = [score.method for score in scores(result) if score.method in result["baselines"]]
    for line in result["label_fractions"]:
        of_line = [
            _over_seeds(told, [of_seed[metric] for of_seed in line[origin]])
            for origin, told in _ORIGINS.items()
            if line[origin]
        ]
        of_line += [
            Score(name, line["baselines"][name][metric], None, 1)
            for name in rivals[:1]
            if metric in line["baselines"].get(name, {})
        ]
        found.append((line["rows"], of_line))
    return found


def _over_seeds(method: str, values: Sequence[float]) -> Score:
    spread = stdev(values) if len(values) > 1 else None
    return Score(method, fmean(values), spread, len(values))


def _data(corpus: Finished | None, tokens: Finished | None) -> list[tuple[str, Any]]:
    """What became of the documents, as names and values."""
    found: list[tuple[str, Any]] = []
    for step, names in ((corpus, _DOCUMENTS), (tokens, _TOKENS)):
        facts = step.record.facts if step else {}
        found += [(told, facts[name]) for name, told in names.items() if name in facts]
    return found


def _pretraining(step: Finished | None) -> dict[str, Any] | None:
    if step is None or not (step.output / "pretraining.json").is_file():
        return None  # an adopted checkpoint has no history
    found = json.loads((step.output / "pretraining.json").read_text(encoding="utf-8"))
    return {"facts": step.record.facts, "chart": _loss_chart(found["history"])}


def _task(
    name: str, finished: Mapping[str, Finished], promotions: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name}
    if tune := finished.get(f"{name}.tune"):
        trials = json.loads((tune.output / "trials.json").read_text(encoding="utf-8"))
        metric = tune.record.spec["task"]["metric"]
        found |= {"trials": ranked(trials, metric), "metric": metric}
        found["trials_chart"] = _trials_chart(trials, metric)
    if final := finished.get(f"{name}.final"):
        result = json.loads((final.output / "final.json").read_text(encoding="utf-8"))
        found |= {"result": result, "scores": scores(result), "metric": result["metric"]}
        found["again_test"] = fmean(s[result["metric"]] for s in result["seeds"]["pretrained"])
        found["scores_chart"] = _scores_chart(found["scores"], result["metric"])
        found["fractions"] = fractions(result)
        if found["fractions"]:
            found["fractions_chart"] = _fractions_chart(found["fractions"], result["metric"])
    if promotion := promotions.get(f"{name}.promote"):
        found["promotion"] = promotion
    return found


def _loss_chart(history: Sequence[Mapping[str, float]]) -> str:
    figure, axes = _chart("tokens", "loss (nats per token)")
    axes.plot([h["tokens"] for h in history], [h["loss"] for h in history], label="training")
    held_out = [h for h in history if "validation_loss" in h]
    if held_out:
        losses = [h["validation_loss"] for h in held_out]
        axes.plot([h["tokens"] for h in held_out], losses, "o-", label="validation")
    axes.legend(frameon=False)
    return _embedded(figure)


def _trials_chart(trials: Sequence[Mapping[str, Any]], metric: str) -> str:
    figure, axes = _chart("epoch", f"{metric} on validation rows")
    for trial in trials:
        values = [epoch[metric] for epoch in trial["history"] if metric in epoch]
        axes.plot(range(1, len(values) + 1), values, "o-", alpha=0.7, markersize=3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _embedded(figure)


def _scores_chart(found: Sequence[Score], metric: str) -> str:
    figure, axes = _chart(f"{metric} on test rows", "")
    worst_first = list(reversed(found))
    # Points, not bars: a bar that does not begin at zero overstates a difference.
    axes.errorbar(
        [score.mean for score in worst_first],
        [score.method for score in worst_first],
        xerr=[score.spread or 0.0 for score in worst_first],
        fmt="o",
        capsize=3,
    )
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(-0.5, len(found) - 0.5)
    return _embedded(figure)


def _fractions_chart(found: Sequence[tuple[int, Sequence[Score]]], metric: str) -> str:
    figure, axes = _chart("labelled training rows", f"{metric} on test rows")
    methods = dict.fromkeys(score.method for _, scores in found for score in scores)
    for told in methods:
        lines = [(rows, one) for rows, scores in found for one in scores if one.method == told]
        if lines:
            axes.errorbar(
                [rows for rows, _ in lines],
                [score.mean for _, score in lines],
                yerr=[score.spread or 0.0 for _, score in lines],
                fmt="o-",
                capsize=3,
                label=told,
            )
    axes.set_xscale("log")
    axes.legend(frameon=False)
    return _embedded(figure)


def _chart(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=_CHART_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _embedded(figure: Figure) -> str:
    """The chart as a data URI: an SVG needs no network and stays sharp in print."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: Any) -> str:
    """A number for people; everything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
