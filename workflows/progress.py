"""The live view of a run in the terminal, drawn from its journal alone."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from workflows.journal import Event, Tail

_MARKS = {
    "reused": "[dim]=[/dim]",
    "not needed": "[dim]-[/dim]",
    "waiting": "[dim].[/dim]",
    "running": "[cyan]>[/cyan]",
    "done": "[green]+[/green]",
    "failed": "[red]x[/red]",
    "blocked": "[yellow]![/yellow]",
}
_LINE_EVERY_S = 15.0

SUCCEEDED, FAILED, STOPPED = "succeeded", "failed", "stopped"
"""How a run ends."""


@dataclass
class StepView:
    """What the journal has said of one step so far."""

    state: str = "waiting"
    started_at: float | None = None
    ended_at: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    cause: str = ""

    @property
    def elapsed_s(self) -> float | None:
        """Seconds from its start to its end, or to now."""
        if self.started_at is None:
            return None
        return (self.ended_at or time.time()) - self.started_at


class RunView:
    """The state of a run, put together from its events."""

    def __init__(self, steps: Iterable[str] = ()) -> None:
        self.steps: dict[str, StepView] = {name: StepView() for name in steps}
        self.last_event_at: float | None = None
        """By the clock of whoever wrote it, in seconds since 1970."""
        self.outcome: str | None = None
        """How the run ended; None while it goes on, or where its driver was killed."""
        self.said: list[str] = []
        """The lines that it ended with."""

    def take(self, event: Event) -> None:
        """Add one event."""
        self.last_event_at = event["time"]
        if event["event"] == "run":
            self.outcome, self.said = event["outcome"], event["said"]
        name = event.get("step")
        if name is None:
            return
        view = self.steps.setdefault(name, StepView())
        match event["event"]:
            case "step":
                self._take_state(view, event)
            case "progress":
                view.progress = dict(event)
            case "trial":
                view.trials[event["trial"]] = dict(event)

    def _take_state(self, view: StepView, event: Event) -> None:
        view.state = event["state"]
        view.facts = dict(event.get("facts") or {})
        view.cause = event.get("cause", "")
        if view.state == "running":
            view.started_at, view.ended_at = event["time"], None
        elif view.started_at is not None:
            view.ended_at = event["time"]

    def table(self) -> Table:
        """One line a step."""
        table = Table(box=None, pad_edge=False, show_header=False, expand=True)
        table.add_column(width=1, no_wrap=True)
        table.add_column(no_wrap=True, min_width=max(map(len, self.steps), default=0))
        table.add_column(no_wrap=True, min_width=len("not needed"))
        table.add_column(justify="right", no_wrap=True, min_width=len("00:00"))
        table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)  # has what the others leave
        for name, view in self.steps.items():
            table.add_row(
                _MARKS.get(view.state, "?"), name, view.state, clock(view.elapsed_s), detail(view)
            )
        return table


def detail(view: StepView) -> str:
    """What a person would ask about a step: how far, or what came out."""
    if view.cause:
        return view.cause
    if view.state == "running" and view.progress:
        return _of_training(view.progress)
    if view.state == "running" and view.trials:
        return f"{len(view.trials)} trials begun, {_epochs(view.trials)} epochs"
    return _of_facts(view.facts)


def clock(seconds: float | None) -> str:
    """Minutes and seconds."""
    if seconds is None:
        return ""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class LiveView:
    """Redraws while a run goes on; in a file or pipe, a plain line for each change instead."""

    def __init__(
        self, console: Console, tail: Tail, steps: Iterable[str], *, every_s: float = 0.0
    ) -> None:
        """Looks for events every `every_s` seconds at most: an object store lists them anew."""
        self._console, self._tail, self.view = console, tail, RunView(steps)
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self._last_line: dict[str, float] = {}
        self._every_s, self._looked_at = every_s, float("-inf")

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._show()
        finally:
            if self._live:
                self._live.stop()

    def tick(self) -> None:
        """Take new events and show them, when it is time."""
        if time.monotonic() - self._looked_at >= self._every_s:
            self._show()

    def _show(self) -> None:
        self._looked_at = time.monotonic()
        for event in self._tail.new():
            self.view.take(event)
            if not self._live:
                self._print(event)
        if self._live:
            self._live.update(self.view.table())

    def _print(self, event: Event) -> None:
        """State changes at once, progress every now and then."""
        name = event.get("step")
        if name is None:
            return
        is_change = event["event"] == "step"
        if event.get("state") == "waiting":
            return
        if not is_change and event["time"] - self._last_line.get(name, 0.0) < _LINE_EVERY_S:
            return
        self._last_line[name] = event["time"]
        view = self.view.steps[name]
        stamp = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        line = f"{stamp} {name}: {view.state} {detail(view)}".rstrip()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _of_training(progress: Mapping[str, Any]) -> str:
    parts = (
        [f"step {progress['optimizer_step']}/{progress['total_steps']}"]
        if "optimizer_step" in progress
        else []
    )
    parts.append(f"loss {progress['loss']:.3f}")
    if "validation_loss" in progress:
        parts.append(f"validation {progress['validation_loss']:.3f}")
    if "tokens_per_s" in progress:
        parts.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
    return ", ".join(parts)


def _epochs(trials: Mapping[str, Mapping[str, Any]]) -> int:
    return int(sum(trial.get("epoch", 0) for trial in trials.values()))


def _of_facts(facts: Mapping[str, Any]) -> str:
    """The first few plain values."""
    if {"model", "outcome", "reason"} <= facts.keys():
        return f"{facts['model']} {facts['outcome']}: {facts['reason']}"
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
        for name, value in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return ", ".join(f"{name} {value}" for name, value in list(shown.items())[:4])
