"""The report's charts: SVG in the page, by matplotlib.

Their ground is transparent and their ink dark: the page inverts them on a dark screen. They are as
small as a telephone is wide, so that their text can be read there.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from workflows.report.growth import Law, Point
from workflows.report.scoring import Score
from workflows.report.searched import Dimension
from workflows.report.timeline import Cost, Span
from workflows.report.wording import clock, cut, number, plural

WIDTH_INCHES, HEIGHT_INCHES = 4.8, 2.9
LINE_INCHES, EDGE_INCHES = 0.2, 0.9
MOST_STEPS = 40
MANY = 100
"""More lines than these are drawn as an image inside the SVG, whose size then does not grow."""

_NAME_CHARACTERS = 20
_PLOT_LINES = 10
"""As many lines of names as a plot is high."""
_COLUMN_INCHES, _COLUMN_CHARACTERS = 1.25, 12
_PX_PER_INCH = 72
_NOWHERE = -0.2
"""Where a line passes an axis on which a trial has no value."""
_PLATE = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
_STYLE = {
    # Names of steps and labels are the user's: `$` in them opens no formula.
    "text.parse_math": False,
    # Text stays text: a tenth of the size of its outlines.
    "svg.fonttype": "none",
    # The same data give the same bytes.
    "svg.hashsalt": "pretune",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Draw = Callable[[Any], None]
"""Draws on axes."""


@dataclass(frozen=True)
class Chart:
    """A picture and what it shows."""

    title: str
    source: str
    """As a data URI: it needs no network and stays sharp in print."""
    alt: str
    """What the picture shows, for those who do not see it."""
    least_width_px: int = 0
    """Narrower, its text could not be read; 0 where it is as narrow as a telephone."""


def losses(history: Sequence[Mapping[str, float]]) -> Chart:
    """Of pretraining, by tokens."""
    held_out = [point for point in history if "validation_loss" in point]
    lines = {"training": ([h["tokens"] for h in history], [h["loss"] for h in history], "-")}
    if held_out:
        tokens = [h["tokens"] for h in held_out]
        lines["validation"] = (tokens, [h["validation_loss"] for h in held_out], "o-")

    def draw(axes: Any) -> None:
        for told, (x, y, style) in lines.items():
            axes.plot(x, y, style, label=told, markersize=3)
        _name(axes, "tokens", "loss (nats per token)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(frameon=False)

    told = "; ".join(f"{name} {_from_to(y)}" for name, (_, y, _) in lines.items())
    return Chart("Loss", _drawn(draw), f"Loss by tokens: {told}.")


def course(title: str, unit: str, tokens: Sequence[float], values: Sequence[float]) -> Chart:
    """One measure of pretraining, by tokens."""

    def draw(axes: Any) -> None:
        axes.plot(tokens, values)
        _name(axes, "tokens", unit)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if max(values, default=0.0) >= 1000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))

    least, most = number(float(min(values))), number(float(max(values)))
    told = f"{_from_to(values)}, between {least} and {most} ({unit})"
    return Chart(title, _drawn(draw), f"{title} by tokens: {told}.")


def timeline(spans: Sequence[Span]) -> Chart:
    """When the steps of a run ran."""
    kept = {span.name for span in sorted(spans, key=lambda s: -s.elapsed_s)[:MOST_STEPS]}
    shown = [span for span in spans if span.name in kept]

    def draw(axes: Any) -> None:
        names = [cut(span.name, _NAME_CHARACTERS) for span in shown]
        begin, took = [s.begin_s for s in shown], [s.elapsed_s for s in shown]
        # With an edge, so that the shortest step is seen, too.
        axes.barh(range(len(shown)), took, left=begin, edgecolor="C0")
        _list(axes, names)
        _name(axes, "seconds since the first step began", "")

    last = max(spans, key=lambda span: span.end_s)
    longest = max(spans, key=lambda span: span.elapsed_s)
    alt = (
        f"When {plural(len(shown), 'step')} ran, by seconds: the longest is {longest.name} with "
        f"{clock(longest.elapsed_s)}, the last to end {last.name} after {clock(last.end_s)}."
    )
    return Chart("When each step ran", _drawn(draw, lines=len(shown)), alt)


def seconds(costs: Sequence[Cost]) -> Chart:
    """What steps took."""
    shown = sorted(costs, key=lambda cost: -cost.elapsed_s)[:MOST_STEPS]

    def draw(axes: Any) -> None:
        axes.barh(range(len(shown)), [cost.elapsed_s for cost in shown], edgecolor="C0")
        _list(axes, [cut(cost.name, _NAME_CHARACTERS) for cost in shown])
        _name(axes, "seconds", "")

    told = ", ".join(f"{cost.name} {clock(cost.elapsed_s)}" for cost in shown[:3])
    alt = f"Seconds of {plural(len(shown), 'step')}; most took {told}."
    return Chart("Seconds of each step", _drawn(draw, lines=len(shown)), alt)


def scores(task: str, metric: str, found: Sequence[Score]) -> Chart:
    """Test scores by method."""

    def draw(axes: Any) -> None:
        # Points, not bars: a bar that does not begin at zero overstates a difference.
        axes.errorbar(
            [score.mean for score in found],
            range(len(found)),
            xerr=[score.spread or 0.0 for score in found],
            fmt="o",
            capsize=3,
        )
        _list(axes, [score.method for score in found])
        axes.grid(axis="x", alpha=0.3)
        _name(axes, f"{metric} on test rows", "")

    told = ", ".join(f"{score.method} {score.told}" for score in found)
    source = _drawn(draw, lines=_lines([score.method for score in found]))
    return Chart("Test scores", source, f"{metric} of {task} on test rows: {told}.")


def fractions(task: str, metric: str, found: Sequence[tuple[int, Sequence[Score]]]) -> Chart:
    """Test scores by number of labels."""
    methods = dict.fromkeys(score.method for _, scores in found for score in scores)
    lines = {
        told: [(rows, one) for rows, scores in found for one in scores if one.method == told]
        for told in methods
    }

    def draw(axes: Any) -> None:
        for told, points in lines.items():
            axes.errorbar(
                [rows for rows, _ in points],
                [score.mean for _, score in points],
                yerr=[score.spread or 0.0 for _, score in points],
                fmt="o-",
                capsize=3,
                label=told,
            )
        axes.set_xscale("log")
        ticks = [rows for rows, _ in found]
        axes.set_xticks(ticks, [f"{rows:,}" for rows in ticks])
        axes.set_xticks([], minor=True)
        _name(axes, "labelled training rows", f"{metric} on test rows")
        axes.figure.legend(loc="outside lower left", frameon=False)

    told = "; ".join(
        f"{method}: " + ", ".join(f"{score.told} with {rows:,}" for rows, score in points)
        for method, points in lines.items()
    )
    source = _drawn(draw, lines=_PLOT_LINES + len(lines))
    return Chart("With fewer labels", source, f"{metric} of {task} by labelled rows: {told}.")


def over_tokens(task: str, metric: str, looks: Sequence[Point], law: Law | None) -> Chart:
    """Scores of heads above a base while it was pretrained, and the law that they follow."""

    def draw(axes: Any) -> None:
        axes.plot([look.tokens for look in looks], [look.score for look in looks], "o")
        if law is not None:
            first, last = looks[0].tokens, 2 * looks[-1].tokens
            x = [first * (last / first) ** (n / 50) for n in range(51)]
            axes.plot(x, [law.at(tokens) for tokens in x], "--")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _name(axes, "tokens of pretraining", f"{metric} on validation rows")

    told = ", ".join(f"{number(look.score)} after {look.tokens:,} tokens" for look in looks)
    more = f"; expected after twice as many: {number(law.at(2 * law.unit))}" if law else ""
    alt = f"{metric} of a head of {task} above the base: {told}{more}."
    return Chart("Over the tokens of pretraining", _drawn(draw), alt)


def learning_curves(task: str, metric: str, curves: Sequence[Sequence[float]]) -> Chart:
    """Validation scores of trials by epoch."""

    def draw(axes: Any) -> None:
        for values in curves:
            is_image = len(curves) > MANY
            x = range(1, len(values) + 1)
            axes.plot(x, values, "o-", alpha=0.7, markersize=3, rasterized=is_image)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name(axes, "epoch", f"{metric} on validation rows")

    longest = max(len(values) for values in curves)
    alt = (
        f"Learning curves of {plural(len(curves), 'trial')} of {task}, up to "
        f"{plural(longest, 'epoch')}: {metric} on validation rows in the end between "
        f"{number(min(v[-1] for v in curves))} and {number(max(v[-1] for v in curves))}."
    )
    return Chart("Learning curves", _drawn(draw), alt)


def best_so_far(task: str, metric: str, each: Sequence[float], best: Sequence[float]) -> Chart:
    """Scores of trials in their order, and the best up to each."""

    def draw(axes: Any) -> None:
        x = range(1, len(each) + 1)
        axes.plot(x, each, "o", alpha=0.8, markersize=4, label="trial", rasterized=len(each) > MANY)
        axes.step(x, best, where="post", label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name(axes, "trial", f"{metric} on validation rows")
        axes.figure.legend(loc="outside lower left", frameon=False, ncols=2)

    found_at = list(best).index(best[-1]) + 1
    alt = (
        f"Best {metric} of {task} so far: {number(best[0])} after the first of {len(each)} trials, "
        f"{number(best[-1])} after trial {found_at}, and no better one since."
    )
    return Chart("Best so far", _drawn(draw, lines=_PLOT_LINES + 1), alt)


def importance(
    task: str, metric: str, names: Sequence[str], means: Sequence[float], spreads: Sequence[float]
) -> Chart:
    """How much worse scores are predicted without each hyperparameter."""

    def draw(axes: Any) -> None:
        axes.errorbar(means, range(len(names)), xerr=spreads, fmt="o", capsize=3)
        axes.axvline(0.0, color="gray", linewidth=1)
        _list(axes, names)
        _name(axes, f"error added, in {metric}", "")

    told = ", ".join(
        f"{name} {mean:.2g} ± {spread:.2g}"
        for name, mean, spread in zip(names, means, spreads, strict=True)
    )
    alt = f"Importance of hyperparameters of {task}, in {metric}: {told}."
    return Chart("What mattered", _drawn(draw, lines=_lines(names)), alt)


def parallel(
    task: str, metric: str, dimensions: Sequence[Dimension], scores: Sequence[float], sign: float
) -> Chart:
    """Trials as lines through the values of what varied, to their score: the better, the darker.

    Args:
        task: its name.
        metric: of the scores.
        dimensions: hyperparameters, with a value of each trial.
        scores: of the trials.
        sign: -1 where less is better, so that the best is on top.
    """
    merits = [sign * score for score in scores]
    low, high = min(merits), max(merits)
    shares = [(merit - low) / (high - low) if high > low else 1.0 for merit in merits]
    places = [[_NOWHERE if math.isnan(p) else p for p in one.places] for one in dimensions]
    lines = list(zip(*places, shares, strict=True))

    def draw(axes: Any) -> None:
        for number_of_trial in sorted(range(len(lines)), key=lambda n: shares[n]):
            axes.plot(
                lines[number_of_trial],
                # From pale to dark blue: to be told apart without colours, and inverted, too.
                color=colormaps["Blues"](0.25 + 0.75 * shares[number_of_trial]),
                rasterized=len(lines) > MANY,
            )
        for column, one in enumerate(dimensions):
            _axis(axes, column, one.name, _ends(one))
            _choices(axes, column, one)
        ends = (number(sign * low), number(sign * high))
        _axis(axes, len(dimensions), metric, ends)
        axes.set_ylim(-0.3, 1.35)
        axes.set_axis_off()

    best = max(range(len(merits)), key=lambda n: merits[n])
    told = ", ".join(f"{one.name} {number(one.values[best])}" for one in dimensions)
    names = ", ".join(one.name for one in dimensions)
    alt = (
        f"{plural(len(lines), 'trial')} of {task} by what varied ({names}) and {metric} on "
        f"validation rows; the best, {number(scores[best])}, has {told}."
    )
    width = max(WIDTH_INCHES, _COLUMN_INCHES * (len(dimensions) + 1))
    least_px = round(width * _PX_PER_INCH) if width > WIDTH_INCHES else 0
    return Chart("Hyperparameters and scores", _drawn(draw, width=width), alt, least_px)


def _ends(one: Dimension) -> tuple[str, str]:
    return (number(min(one.there)), number(max(one.there))) if one.is_number else ("", "")


def _axis(axes: Any, column: int, name: str, ends: tuple[str, str]) -> None:
    """An axis of its own, with its name on top and what its ends are."""
    axes.axvline(column, ymin=0.3 / 1.65, ymax=1.3 / 1.65, color="black", linewidth=0.8)
    told = fill(name.replace("_", " "), _COLUMN_CHARACTERS)
    axes.text(column, 1.12, told, ha="center", va="bottom", fontweight="bold")
    low, high = ends
    axes.text(column, 1.02, high, ha="center", va="bottom", fontsize=9)
    axes.text(column, -0.02, low, ha="center", va="top", fontsize=9)


def _choices(axes: Any, column: int, one: Dimension) -> None:
    """Names beside an axis that has no numbers; and of its place for trials without a value."""
    named = {"none": _NOWHERE} if None in one.values else {}
    if not one.is_number:
        pairs = zip(one.values, one.places, strict=True)
        named |= {str(value): float(place) for value, place in pairs if value is not None}
    for told, place in named.items():
        axes.text(column + 0.05, place, told, va="center", fontsize=9, bbox=_PLATE)


def _from_to(values: Sequence[float]) -> str:
    return f"from {number(float(values[0]))} to {number(float(values[-1]))}"


def _name(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _list(axes: Any, names: Sequence[str]) -> None:
    """Names along the vertical axis, the first on top."""
    axes.set_yticks(range(len(names)), [fill(name, _NAME_CHARACTERS) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _lines(names: Sequence[str]) -> float:
    """Of names that are broken, with half a line between them."""
    return sum(fill(name, _NAME_CHARACTERS).count("\n") + 1.5 for name in names)


def _drawn(draw: Draw, *, lines: float | None = None, width: float = WIDTH_INCHES) -> str:
    """A chart as a data URI, as high as its lines of names need."""
    height = HEIGHT_INCHES if lines is None else EDGE_INCHES + LINE_INCHES * lines
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        metadata = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata=metadata)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
