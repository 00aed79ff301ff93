"""The tables, as Markdown."""

import statistics
from itertools import pairwise

from comparison import Group, Runs, parts_of_startup, quartiles, rate_of
from goodput import GPU_HOURS_PER_FAILURE, GPUS, goodput

RATE_COLUMNS = (
    "training",
    "subject",
    "tokens per second",
    "quartiles",
    "ms per step",
    "pretune's over it",
    "quartiles",
)


def build_tables(
    groups: list[Group], runs: Runs, facts: dict[str, float], warm_up: int
) -> list[str]:
    """All that was measured."""
    lines: list[str] = []
    alike = [group for group in groups if group.has_equal_losses]
    if alike:
        lines += ["## The same training", "", *build_rates(alike, runs, warm_up), ""]
    for group in groups:
        if group.part == "short":
            lines += ["## Short texts", "", *build_rates([group], runs, warm_up), ""]
            lines += [*describe_short(group, runs, facts, warm_up), ""]
        if group.part == "startup":
            lines += ["## Start-up", "", *build_startup(group, runs), ""]
    return lines


def build_rates(groups: list[Group], runs: Runs, warm_up: int) -> list[str]:
    """Tokens per second, and pretune's over each peer's, repeat by repeat."""
    lines = [
        f"| {' | '.join(RATE_COLUMNS)} |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for group in groups:
        ours = [rate_of(line, warm_up) for line in runs[group.title, "pretune"]]
        for subject in group.subjects:
            measured = runs[group.title, subject.name]
            rates = [rate_of(line, warm_up) for line in measured]
            ratios = [one / other for one, other in zip(ours, rates, strict=True)]
            steps_ms = statistics.median(median_step_ms(line, warm_up) for line in measured)
            lines.append(
                f"| {group.title} | {subject.name} | {statistics.median(rates):,.0f} "
                f"| {' to '.join(format(value, ',.0f') for value in quartiles(rates))} "
                f"| {steps_ms:.1f} | {statistics.median(ratios):.3f} "
                f"| {' to '.join(format(value, '.3f') for value in quartiles(ratios))} |"
            )
    return lines


def median_step_ms(line: dict, warm_up: int) -> float:
    """The median step behind the warm-up."""
    ends = line["ends"][warm_up - 1 :]
    return statistics.median(b - a for a, b in pairwise(ends)) * 1000


def describe_short(group: Group, runs: Runs, facts: dict[str, float], warm_up: int) -> list[str]:
    """What the two sides did alike, and what not."""
    told = (
        f"Tokens are those of texts, an end token each; {facts['tokens of a text']:.1f} a text in "
        f"the mean, {facts['texts that were cut']:.2%} longer than a sequence. Pretune's sequences "
        f"hold {facts['padding when packed']:.2%} of padding. The losses cannot be equal: the "
        "order of the texts differs, and pretune also predicts the end of each text."
    )
    lines = [told, ""]
    for subject in group.subjects:
        measured = runs[group.title, subject.name]
        tokens = statistics.mean(t for line in measured for t in line["tokens"][warm_up:])
        positions = statistics.mean(n for line in measured for n in line["positions"][warm_up:])
        tail = [statistics.mean(line["losses"][-10:]) for line in measured]
        lines.append(
            f"- {subject.name}: {tokens:.0f} tokens a step in {positions:.0f} places, so "
            f"{1 - tokens / positions:.1%} of the work is padding; mean loss of the last 10 steps "
            f"{statistics.median(tail):.3f}"
        )
    return lines


def build_startup(group: Group, runs: Runs) -> list[str]:
    """Seconds of each part, in the order they happen."""
    lines = ["| subject | part | seconds | quartiles |", "|---|---|---:|---:|"]
    for subject in group.subjects:
        measured = [parts_of_startup(line) for line in runs[group.title, subject.name]]
        for part in measured[0]:
            values = [seconds[part] for seconds in measured]
            lines.append(startup_row(subject.name, part, values))
        totals = [sum(seconds.values()) for seconds in measured]
        lines.append(startup_row(subject.name, "all", totals))
    return lines


def startup_row(subject: str, part: str, values: list[float]) -> str:
    """One line of the table."""
    spread = " to ".join(format(value, ".2f") for value in quartiles(values))
    return f"| {subject} | {part} | {statistics.median(values):.2f} | {spread} |"


def build_goodput(stall_s: float, recovery_s: float) -> list[str]:
    """What a stall and a recovery would cost where there are many GPUs."""
    told = (
        f"Nothing here was run on a GPU. Given a checkpoint that stalls training for {stall_s:g} s "
        f"and a recovery of {recovery_s:g} s, at one failure every {GPU_HOURS_PER_FAILURE:,} GPU "
        "hours (Llama 3 405B, arXiv:2407.21783), Daly's first-order model gives the interval "
        "between checkpoints that loses least, and the share of time that is left. Both figures "
        "are inputs: on GPUs they are others than on this machine."
    )
    lines = [
        "## What it would mean on GPUs (a model, not a measurement)",
        "",
        told,
        "",
        "| GPUs | hours between failures | seconds between checkpoints | goodput |",
        "|---:|---:|---:|---:|",
    ]
    for gpus in GPUS:
        found = goodput(gpus, stall_s=stall_s, recovery_s=recovery_s)
        lines.append(
            f"| {gpus:,} | {found.failure_every_s / 3600:,.1f} | {found.checkpoint_every_s:,.0f} "
            f"| {found.share:.2%} |"
        )
    return [*lines, ""]


def build_report(
    title: str, tables: list[str], machine: list[str], runs: Runs, warm_up: int
) -> str:
    """The dated result file."""
    parameters = max((line["parameters"] for lines in runs.values() for line in lines), default=0)
    repeats = max((len(lines) for lines in runs.values()), default=0)
    singles = [
        f"| {group} | {subject} | {', '.join(single_value(line, warm_up) for line in lines)} |"
        for (group, subject), lines in runs.items()
    ]
    return "\n".join(
        [
            title,
            "",
            f"A llama of {parameters:,} parameters, fp32, one thread a rank. Medians of {repeats}",
            f"interleaved repeats; the first {warm_up} steps of a training are not timed. In the",
            "first table all losses were compared step by step and are equal within 1e-5 of them.",
            "`pretune's over it` is the median of the repeats' own ratios. What each subject does,",
            "and why, is in the docstring of its script in `benchmarks/pretraining/`.",
            "",
            *tables,
            "## Machine",
            "",
            *machine,
            "",
            "## Versions",
            "",
            *describe_versions(runs),
            "",
            "## All values",
            "",
            "Tokens per second; of start-up, the seconds of each part.",
            "",
            "| training | subject | values |",
            "|---|---|---|",
            *singles,
            "",
        ]
    )


def single_value(line: dict, warm_up: int) -> str:
    """One run's value."""
    if line["marks"].get("ray.init") or len(line["ends"]) <= warm_up:
        seconds = parts_of_startup(line)
        return " + ".join(format(value, ".2f") for value in seconds.values())
    return format(rate_of(line, warm_up), ".1f")


def describe_versions(runs: Runs) -> list[str]:
    """All packages the subjects named."""
    versions: dict[str, str] = {}
    for lines in runs.values():
        versions |= lines[-1]["versions"]
    return [f"- {name} {number}" for name, number in versions.items()]
