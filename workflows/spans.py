"""The spans of a run, made from its driver's events as they come.

One for the run and in it one for each step, linked to those of its inputs. What has ended can be
sent while the rest goes on.
"""

from collections.abc import Sequence

from opentelemetry.trace import Link, Span, StatusCode, Tracer, set_span_in_context

from workflows.execution import without_secrets
from workflows.journal import Event
from workflows.planning import ENDED, State
from workflows.progress import FAILED
from workflows.steps import Step


class Trace:
    """The spans of one run, from the first of its driver's events to the last."""

    def __init__(self, tracer: Tracer, run_id: str, pipeline: str, steps: Sequence[Step]) -> None:
        self._tracer, self._steps = tracer, {step.name: step for step in steps}
        self._facts = {"pretune.run_id": run_id, "pretune.pipeline": pipeline}
        self._root: Span | None = None
        self._spans: dict[str, Span] = {}
        self._failed: list[str] = []

    def take(self, event: Event) -> None:
        """Add one event."""
        match event["event"]:
            case "run" if event["outcome"] is not None:
                self.end(event["outcome"], event["time"], ", ".join(self._failed))
            case "run":
                self._root = self._tracer.start_span(
                    "pretune.run", attributes=self._facts, start_time=_ns(event["time"])
                )
            case "step":
                self._take_step(event["step"], event)

    def end(self, outcome: str, at: float, cause: str = "") -> None:
        """End the run's span, and those of steps that were under way."""
        if self._root is None or not self._root.is_recording():
            return
        for span in self._spans.values():
            if span.is_recording():
                span.end(_ns(at))
        self._root.set_attribute("pretune.outcome", outcome)
        if outcome == FAILED:
            self._root.set_status(StatusCode.ERROR, without_secrets(cause))
        self._root.end(_ns(at))

    def _take_step(self, name: str, event: Event) -> None:
        """Begin its span when it begins, or waits for another run; end it with the step."""
        state, cause = event["state"], without_secrets(event.get("cause", ""))
        if state == State.WAITING and not cause:
            return  # planned, no more
        span = self._spans.get(name) or self._begin(name, event["time"])
        if not span.is_recording():
            return
        span.set_attribute("pretune.state", state)
        if "attempt" in event:
            span.set_attribute("pretune.attempts", event["attempt"])
        if cause:
            span.add_event(state, {"pretune.cause": cause}, _ns(event["time"]))
        if state == State.FAILED:
            self._failed.append(f"{name}: {cause}")
            span.set_status(StatusCode.ERROR, cause)
        if state in ENDED:
            span.end(_ns(event["time"]))

    def _begin(self, name: str, at: float) -> Span:
        assert self._root is not None, "a run's first event is its own"
        step = self._steps[name]
        inputs = (self._spans.get(one.name) for one in step.inputs.values())
        about = {"pretune.kind": step.kind, "pretune.fingerprint": step.fingerprint}
        self._spans[name] = self._tracer.start_span(
            name,
            set_span_in_context(self._root),
            attributes=self._facts | about,
            links=[Link(span.get_span_context()) for span in inputs if span],
            start_time=_ns(at),
        )
        return self._spans[name]


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
