"""The result file, as Markdown."""

import statistics

from agreement import EXPERT, OURS, Run, Runs, best_mean, largest_differences, mean_loss, tasks_of
from regimes import Regime

Rows = dict[str, dict[str, dict[str, int]]]
"""Number of rows by regime, task and split."""


def build_tables(regimes: list[Regime], runs: Runs, rows: Rows) -> list[str]:
    """What was measured, regime by regime."""
    lines: list[str] = []
    for regime in regimes:
        of_regime = {
            subject: found for (name, subject), found in runs.items() if name == regime.name
        }
        lines += [f"## {regime.name}", "", describe(regime, rows[regime.name]), ""]
        lines += [*build_times(of_regime), "", *build_scores(of_regime), ""]
        if EXPERT in of_regime:
            score, loss = largest_differences(of_regime[OURS][-1], of_regime[EXPERT][-1])
            told = (
                f"Largest difference between the trials of {OURS} and those of the {EXPERT}: "
                f"{score:.1g} in the score, {loss:.1g} of the training loss."
            )
            lines += [told, ""]
    return lines


def describe(regime: Regime, rows: dict[str, dict[str, int]]) -> str:
    """What was searched, in a sentence."""
    counts = ", ".join(
        f"{task} {found['train']} rows and {found['validation']} to validate"
        for task, found in rows.items()
    )
    rates = ", ".join(format(rate, "g") for rate in regime.learning_rates)
    epochs = ", ".join(map(str, regime.epochs))
    trials = len(regime.points()) * len(rows)
    return (
        f"{trials} trials, method `{regime.method}`, schedule `{regime.schedule}`; "
        f"learning rates {rates}; epochs {epochs}; {counts}."
    )


def build_times(runs: dict[str, list[Run]]) -> list[str]:
    """Seconds of each run; how much longer than Pretune's of the same repeat."""
    lines = [
        f"| subject | seconds | median | over {OURS}'s | MB of checkpoints written |",
        "|---|---|---:|---:|---:|",
    ]
    ours = [run["seconds"] for run in runs[OURS]]
    for subject, found in runs.items():
        seconds = [run["seconds"] for run in found]
        ratios = [other / one for one, other in zip(ours, seconds, strict=True)]
        written = statistics.median(run["bytes_written"] for run in found) / 1e6
        lines.append(
            f"| {subject} | {', '.join(format(value, '.1f') for value in seconds)} "
            f"| {statistics.median(seconds):.1f} | {statistics.median(ratios):.2f} "
            f"| {written:,.0f} |"
        )
    return lines


def build_scores(runs: dict[str, list[Run]]) -> list[str]:
    """Best and mean score and mean loss of each task; all runs of a subject have the same."""
    tasks = tasks_of(runs[OURS][-1])
    titles = [f"{task}, {name}" for task in tasks for name in ("best", "mean", "loss")]
    lines = [f"| subject | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for subject, found in runs.items():
        last = found[-1]
        values = [
            value for task in tasks for value in (*best_mean(last, task), mean_loss(last, task))
        ]
        lines.append(f"| {subject} | {' | '.join(format(v, '.4f') for v in values)} |")
    return lines


def build_report(
    title: str, tables: list[str], machine: list[str], runs: Runs, parameters: int
) -> str:
    """The dated result file."""
    repeats = max(len(found) for found in runs.values())
    versions: dict[str, str] = {}
    for found in runs.values():
        versions |= found[-1]["versions"]
    return "\n".join(
        [
            title,
            "",
            f"MiniLM-L6 ({parameters:,} parameters), fp32, two trials at once with one thread",
            f"each; fixed points, no early stopping. {repeats} interleaved repeats, each subject a",
            "process with a Ray of its own, whose start is not timed; reading rows and base is.",
            f"`over {OURS}'s` is the median of the repeats' own ratios. What each subject does,",
            "and why, is in the docstring of its script in `benchmarks/search/`.",
            "",
            *tables,
            "## Machine",
            "",
            *machine,
            "",
            "## Versions",
            "",
            *(f"- {name} {number}" for name, number in versions.items()),
            "",
        ]
    )
