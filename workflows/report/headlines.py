"""The report in five lines: what was promoted, what not, how good, by what, how long. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.ledger import Record
from workflows.report.scoring import Worth, baselines, tuned, worth
from workflows.report.timeline import spans
from workflows.report.wording import clock, plural

Told = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """A line of the summary; several sentences where there are several models."""

    name: str
    told: list[str]


def headlines(
    tasks: Sequence[str],
    results: Mapping[str, Told],
    promotions: Mapping[str, Told],
    records: Sequence[Record],
    run: str | None,
) -> list[Headline]:
    """The five.

    Args:
        tasks: names.
        results: each `final.json` that there is, by task.
        promotions: what became of models, by the step that judged them.
        records: of finished steps.
        run: that made the report; None where nobody says.
    """
    promoted, kept = _verdicts(tasks, promotions)
    return [
        Headline("Promoted", promoted or ["nothing"]),
        Headline("Not promoted", kept or ["nothing was held back"]),
        Headline("Best score", [_score(task, results[task]) for task in tasks if task in results]),
        Headline("Worth of the base", [_worth(t, results[t]) for t in tasks if t in results]),
        Headline("Time", [_time(records, run)]),
    ]


def _verdicts(tasks: Sequence[str], promotions: Mapping[str, Told]) -> tuple[list[str], list[str]]:
    promoted, kept = [], []
    for told in promotions.values():
        if told.get("promoted"):
            promoted.append(f"{told['model']}: {told['reason']}")
        else:
            kept.append(f"{told['model']} ({told['outcome']}): {told['reason']}")
    judged = {step.removesuffix(".promote") for step in promotions}
    kept += [f"{task}: it did not get that far" for task in tasks if task not in judged]
    return promoted, kept


def _score(task: str, result: Told) -> str:
    own, others = tuned(result), baselines(result)
    told = f"{task}: {result['metric']} {own.told if own else 'unknown'}"
    if own is None or not others:
        return told
    sign = -1.0 if result["lower_is_better"] else 1.0
    best = others[0]
    gain = sign * (own.mean - best.mean)
    verdict = "better than" if gain > 0 else "no better than"
    return f"{told}, {verdict} {best.told} of {best.method}, the best without a network"


def _worth(task: str, result: Told) -> str:
    found = worth(result)
    if found is None:
        return f"{task}: unknown, for no control was trained (controls.scratch)"
    verdict = f"{abs(found.gain):.4f} {'better' if found.gain > 0 else 'worse'} than"
    if found.gain == 0:
        verdict = "no better than"
    told = f"{task}: {result['metric']} is {verdict} that of the same network from random weights"
    return f"{told} ({found.control.told}){_doubt(found)}"


def _doubt(found: Worth) -> str:
    return ", which is within the spread over seeds" if found.is_within_spread else ""


def _time(records: Sequence[Record], run: str | None) -> str:
    if not records:
        return "no step was finished"
    work = clock(sum(record.elapsed_s for record in records))
    told = f"{work} of work in {plural(len(records), 'step')}"
    own = spans(records, run)
    if not own:
        return told
    passed = clock(max(span.end_s for span in own))
    reused = len(records) - len(own)
    of_run = f"{plural(len(own), 'step')} computed by this run in {passed}"
    return f"{told}; {of_run}" + (f", {reused:,} reused" if reused else "")
