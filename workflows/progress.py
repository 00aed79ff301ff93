"""The live view of a run in the terminal, drawn from its journal alone."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

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
_SHOWN_NOTES = 3
_HOURS_FROM_S = 6000

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
    begun: tuple[float, int] | None = None
    """When the training was first heard of since it began or went on, and at which of its steps."""
    saved_at: float | None = None
    """When it was first heard that its newest checkpoint is whole."""
    search: dict[str, Any] = field(default_factory=dict)
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: float | None = None
    """Of all trials and epochs, what the search ranks by."""
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
        self.notes: list[str] = []
        """What a person should know, as it came."""

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
                self._take_progress(view, event)
            case "search":
                view.search = dict(event)
            case "trial":
                self._take_trial(view, event)
            case "note":
                self.notes.append(f"{name}: {event['text']}")

    def _take_progress(self, view: StepView, event: Event) -> None:
        at, step = event["time"], event.get("optimizer_step")
        if step is not None and (view.begun is None or step < view.progress["optimizer_step"]):
            view.begun = at, step
        saved = event.get("saved_step")
        if saved is not None and saved != view.progress.get("saved_step"):  # none since it began
            view.saved_at = at
        view.progress = dict(event)

    def _take_trial(self, view: StepView, event: Event) -> None:
        view.trials[event["trial"]] = dict(event)
        value = event.get(view.search.get("metric", ""))
        if value is not None and math.isfinite(value):
            choose = min if view.search["lower_is_better"] else max
            view.best = value if view.best is None else choose(view.best, value)

    def _take_state(self, view: StepView, event: Event) -> None:
        view.state = event["state"]
        view.facts = dict(event.get("facts") or {})
        view.cause = event.get("cause", "")
        if view.state == "running":
            view.started_at, view.ended_at = event["time"], None
            view.begun = view.saved_at = None
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
        return _of_training(view)
    if view.state == "running" and view.trials:
        return _of_search(view)
    return _of_facts(view.facts)


def clock(seconds: float | None) -> str:
    """Minutes and seconds, or hours and minutes."""
    if seconds is None:
        return ""
    if seconds >= _HOURS_FROM_S:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d}"
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
            notes = [Text(f"! {note}", "yellow") for note in self.view.notes[-_SHOWN_NOTES:]]
            self._live.update(Group(self.view.table(), *notes))

    def _print(self, event: Event) -> None:
        """State changes at once, progress every now and then."""
        name = event.get("step")
        if name is None:
            return
        if event["event"] == "note":
            self._print_line(event, f"{name}: {event['text']}")
            return
        is_change = event["event"] == "step"
        if event.get("state") == "waiting" or event["event"] == "search":
            return
        if not is_change and event["time"] - self._last_line.get(name, 0.0) < _LINE_EVERY_S:
            return
        self._last_line[name] = event["time"]
        view = self.view.steps[name]
        self._print_line(event, f"{name}: {view.state} {detail(view)}".rstrip())

    def _print_line(self, event: Event, text: str) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        self._console.print(f"{stamp} {text}", markup=False, highlight=False, soft_wrap=True)


def _of_training(view: StepView) -> str:
    """The most important first: lines may be cut."""
    progress, parts = view.progress, []
    if "optimizer_step" in progress:
        parts.append(f"step {progress['optimizer_step']}/{progress['total_steps']}")
    left = _left_s(view)
    if left is not None:
        parts.append(f"{clock(left)} left")
    parts.append(f"loss {progress['loss']:.3f}")
    if "validation_loss" in progress:
        parts.append(f"validation {progress['validation_loss']:.3f}")
    if "tokens_per_s" in progress:
        parts.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
    if "model_flops_utilisation" in progress:
        parts.append(f"MFU {progress['model_flops_utilisation']:.0%}")
    if view.saved_at is not None:
        parts.append(f"saved {clock(time.time() - view.saved_at)} ago")
    return ", ".join(parts)


def _left_s(view: StepView) -> float | None:
    """Seconds that the training still takes, by the steps that were heard of."""
    if view.begun is None:
        return None
    at, first = view.begun
    done = view.progress["optimizer_step"] - first
    left = view.progress["total_steps"] - view.progress["optimizer_step"]
    return left * (view.progress["time"] - at) / done if done > 0 else None


def _of_search(view: StepView) -> str:
    total = f"/{view.search['trials']}" if view.search.get("trials") else ""
    parts = [f"{len(view.trials)}{total} trials begun"]
    if view.best is not None:
        parts.append(f"best {view.search['metric']} {view.best:.4g}")
    epochs = sum(trial.get("epoch", 0) for trial in view.trials.values())
    return ", ".join([*parts, f"{epochs:g} epochs"])


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
