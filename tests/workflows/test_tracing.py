"""Runs as traces: what a receiver gets, and that none is needed for a run to end as it would."""

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from own_steps import BASE, diamond, own_step
from rich.console import Console

from cluster.config import WorkerConfig
from cluster.interface import Outcome, Pending, WorkerLostError
from cluster.local import Done, LocalCluster
from workflows import tracing
from workflows.config import PipelineConfig
from workflows.execution import RunPaths
from workflows.journal import Event, Journal, read
from workflows.run_result import RunResult
from workflows.session import Session
from workflows.spans import Trace
from workflows.steps import Step
from workflows.storage import Storage

UNSET, ERROR = StatusCode.UNSET.value, StatusCode.ERROR.value


class OwnSteps(Session):
    """A session of steps of the user's own alone, which have nothing to sum up."""

    def summary(self, result: RunResult) -> dict[str, Any]:
        return {"states": {}, "promotions": {}, "report": "", "models": "", "mlflow": ""}


class Breaking(LocalCluster):
    """Loses a step's process once, or is broken off where a step begins."""

    def __init__(self, lose: str = "", end: tuple[str, BaseException] | None = None) -> None:
        self._lose, self._end = lose, end

    def submit(
        self, function: Any, *args: Any, log: Path, worker: WorkerConfig | None = None
    ) -> Pending:
        name = args[0].step.name
        if name == self._lose:
            self._lose = ""
            return Done(Outcome(error=WorkerLostError("node died")))
        if self._end is not None and name == self._end[0]:
            raise self._end[1]
        return super().submit(function, *args, log=log, worker=worker)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs steps as `pretune run` does, but in this process."""

    def run(
        steps: list[Step], cluster: LocalCluster | None = None, run_id: str = "first"
    ) -> RunResult:
        @contextlib.contextmanager
        def connect(config: Any) -> Iterator[LocalCluster]:
            yield cluster or LocalCluster()

        monkeypatch.setitem(sys.modules, "cluster.ray_cluster", SimpleNamespace(connect=connect))
        config = PipelineConfig.model_validate(
            {"name": "own", "base": {"from": "."}, "tasks": {}}
            | {"cluster": {"retry": {"delay_s": 0.0}}}
        )
        paths = RunPaths(Storage.at(tmp_path / "storage"), run_id)
        session = OwnSteps(config, BASE, steps, paths, is_named=True)
        return session.run(Console(quiet=True), session.plan())

    return run


class Receiver:
    """An OTLP receiver over HTTP in this process."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                receiver.requests.append(ExportTraceServiceRequest.FromString(content))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def resource(self) -> dict[str, str]:
        (found,) = {
            tuple((one.key, one.value.string_value) for one in spans.resource.attributes)
            for request in self.requests
            for spans in request.resource_spans
        }
        return dict(found)

    @property
    def spans(self) -> dict[str, Any]:
        """By name, of which there may be one each."""
        found = [
            span
            for request in self.requests
            for spans in request.resource_spans
            for scope in spans.scope_spans
            for span in scope.spans
        ]
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    tracing._told.clear()


def facts(span: Any) -> dict[str, Any]:
    """The attributes of a span that was received, without their prefix."""
    return {
        one.key.removeprefix("pretune."): one.value.string_value or one.value.int_value
        for one in span.attributes
    }


def states(receiver: Receiver) -> dict[str, str]:
    found = {name: facts(span).get("state") for name, span in receiver.spans.items()}
    assert found.pop("pretune.run") is None
    return found


def test_a_run_is_one_trace_with_a_span_for_each_step(receiver: Receiver, run: Any) -> None:
    steps = diamond()
    run(steps)
    spans = receiver.spans
    root = spans.pop("pretune.run")
    assert facts(root) == {"run_id": "first", "pipeline": "own", "outcome": "succeeded"}
    assert (root.parent_span_id, root.status.code) == (b"", UNSET)
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    for step in steps:
        assert facts(spans[step.name]) == {
            "run_id": "first",
            "pipeline": "own",
            "kind": "custom",
            "fingerprint": step.fingerprint,
            "state": "done",
            "attempts": 1,
        }
        inputs = {spans[one.name].span_id for one in step.inputs.values()}
        assert {link.span_id for link in spans[step.name].links} == inputs
    assert receiver.resource["service.name"] == "pretune"


def test_times_are_those_of_the_journal(receiver: Receiver, run: Any, tmp_path: Path) -> None:
    run(diamond())
    events = read(Storage.at(tmp_path / "storage"), "runs/first/events")
    whole = [event["time"] for event in events if event["event"] == "run"]
    for name, span in receiver.spans.items():
        own = [event["time"] for event in events if event.get("step") == name]
        begin, end = whole if name == "pretune.run" else own[1:]  # behind that it waits
        assert span.start_time_unix_nano == pytest.approx(begin * 1e9, abs=1e3)
        assert span.end_time_unix_nano == pytest.approx(end * 1e9, abs=1e3)
        assert end > begin


def test_what_is_reused_takes_no_time(receiver: Receiver, run: Any) -> None:
    top, left, right, bottom = diamond()
    run([top, left])
    receiver.requests.clear()
    run([top, left, right, bottom], run_id="second")
    found = {"top": "reused", "left": "reused", "right": "done", "bottom": "done"}
    assert states(receiver) == found
    spans = receiver.spans
    assert spans["left"].start_time_unix_nano == spans["left"].end_time_unix_nano
    assert spans["left"].span_id in {link.span_id for link in spans["bottom"].links}
    receiver.requests.clear()
    run([top, left, right, bottom], run_id="third")
    assert set(states(receiver).values()) == {"reused"}
    assert facts(receiver.spans["pretune.run"])["outcome"] == "succeeded"


def test_a_step_that_fails_is_an_error_of_its_span_and_of_the_run(
    receiver: Receiver, run: Any
) -> None:
    broken = own_step("broken", function="fail")
    run([broken, own_step("behind", broken), own_step("apart")])
    assert states(receiver) == {"broken": "failed", "behind": "blocked", "apart": "done"}
    spans = receiver.spans
    assert spans["broken"].status.code == ERROR
    assert "the step's own error" in spans["broken"].status.message
    assert spans["behind"].status.code == spans["apart"].status.code == UNSET
    assert spans["pretune.run"].status.code == ERROR
    assert spans["pretune.run"].status.message.startswith("broken: KeyError")
    assert facts(spans["pretune.run"])["outcome"] == "failed"


def test_attempts_are_counted_in_one_span(receiver: Receiver, run: Any) -> None:
    run(diamond(), Breaking(lose="left"))
    left = receiver.spans["left"]
    assert (facts(left)["state"], facts(left)["attempts"]) == ("done", 2)
    assert left.status.code == UNSET
    (event,) = left.events
    assert event.name == "waiting"
    assert "node died" in event.attributes[0].value.string_value
    assert left.start_time_unix_nano < event.time_unix_nano < left.end_time_unix_nano


def test_a_run_that_is_stopped_ends_its_spans_and_sends_them(receiver: Receiver, run: Any) -> None:
    assert run(diamond(), Breaking(end=("right", KeyboardInterrupt()))).is_stopped
    found = states(receiver)
    assert (found["top"], found["right"], found["bottom"]) == ("done", "stopped", "stopped")
    assert facts(receiver.spans["pretune.run"])["outcome"] == "stopped"


@pytest.mark.parametrize("error", [SystemExit(), OSError("disk full")])
def test_a_run_that_breaks_off_ends_its_spans_and_sends_them(
    receiver: Receiver, run: Any, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        run(diamond(), Breaking(end=("right", error)))
    spans = receiver.spans
    assert facts(spans["right"])["state"] == "running"
    root = spans["pretune.run"]
    assert spans["right"].end_time_unix_nano == root.end_time_unix_nano > 0
    assert (facts(root)["outcome"], root.status.code) == ("failed", ERROR)
    assert root.status.message == f"{type(error).__name__}: {error}"


class Slow(InMemorySpanExporter):
    """Takes nothing before it may."""

    may = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.may.wait()
        return super().export(spans)


SLOW = Slow()


def slow() -> Slow:
    """An exporter as packages bring them."""
    return SLOW


def plug_in(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have no exporters installed but functions of this module."""
    group = "opentelemetry_traces_exporter"
    installed = EntryPoints(EntryPoint(name, f"{__name__}:{name}", group) for name in names)
    monkeypatch.setattr(tracing, "entry_points", lambda group: installed.select(group=group))


class Told:
    """A trace of events that are made here, and the spans that ended."""

    def __init__(self, steps: list[Step]) -> None:
        self._exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._trace = Trace(provider.get_tracer("test"), "first", "own", steps)
        self._at = 0.0

    def take(self, event: str, **facts: Any) -> None:
        self._at += 1
        told: Event = {"time": self._at, "event": event, **facts}
        self._trace.take(told)

    def span(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return span


def test_a_step_that_another_run_computes_is_waited_for_and_then_reused() -> None:
    told = Told(diamond())
    told.take("run", outcome=None, said=[])
    told.take("step", step="top", state="waiting")
    told.take("step", step="top", state="waiting", cause="run other computes it")
    told.take("step", step="top", state="reused", cause="computed by run other")
    told.take("run", outcome="succeeded", said=[])
    span = told.span("top")
    assert (span.start_time, span.end_time) == (3_000_000_000, 4_000_000_000)
    assert span.attributes is not None
    assert span.attributes["pretune.state"] == "reused"
    assert [event.name for event in span.events] == ["waiting", "reused"]


def test_no_trace_has_a_secret() -> None:
    told = Told(diamond())
    told.take("run", outcome=None, said=[])
    told.take("step", step="top", state="running", attempt=1)
    cause = "no answer of https://ann:secret@host/x"
    told.take("step", step="top", state="failed", cause=cause, log="log")
    told.take("run", outcome="failed", said=[])
    for name in ("top", "pretune.run"):
        text = told.span(name).to_json()
        assert "https://host/x" in text
        assert "secret" not in text


def test_of_many_steps_that_end_at_once_none_is_left_out(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "slow")
    plug_in(monkeypatch, "slow")
    journal, steps = Journal(local, "events", "run"), [own_step(f"step{n}") for n in range(5000)]
    with tracing.traced(journal, "first", "own", steps):
        journal.append("run", outcome=None, said=[])
        for step in steps:
            for listener in journal.listeners:  # at once: without a line written for each
                listener({"time": 1.0, "event": "step", "step": step.name, "state": "reused"})
        journal.append("run", outcome="succeeded", said=[])
        SLOW.may.set()
    assert len(SLOW.get_finished_spans()) == 5001


def test_the_service_has_the_name_that_the_environment_gives_it(
    receiver: Receiver, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=nlp")
    run(diamond())
    assert (receiver.resource["service.name"], receiver.resource["team"]) == ("nightly", "nlp")


@pytest.mark.parametrize(
    "settings", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}]
)
def test_what_is_switched_off_sends_nothing(
    receiver: Receiver,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, str],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert not run(diamond()).failures
    assert receiver.requests == []
    assert warnings(caplog) == []


def test_nobody_listens_unless_it_was_asked_for(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    journal = Journal(local, "events", "run")
    with tracing.traced(journal, "first", "own", []):
        assert journal.listeners == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    with tracing.traced(journal, "first", "own", []):
        assert len(journal.listeners) == 1
    assert journal.listeners == []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_without_the_exporter_one_warning_tells_the_way_out(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    plug_in(monkeypatch)
    assert not run(diamond()).failures
    (warning,) = warnings(caplog)
    assert "otlp_proto_http is not installed; pip install 'pretune[otel]'" in warning


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc is not installed"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin is not installed"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9999"}, "less than or equal to max_queue_size"),
    ],
)
def test_what_cannot_be_had_is_told_and_the_run_goes_on(
    receiver: Receiver,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, str],
    told: str,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert not run(diamond()).failures
    assert receiver.requests == []
    (warning,) = warnings(caplog)
    assert re.search(told, warning)


def test_a_receiver_that_is_down_is_told_once(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver().server as server:
        port = server.server_port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    begun = time.monotonic()
    for run_id in ("first", "second"):
        assert not run(diamond(), run_id=run_id).failures
    assert time.monotonic() - begun < 30
    told = [one for one in warnings(caplog) if "encountered while exporting" in one]
    assert len(told) == 1
    assert str(port) in told[0]


def test_a_receiver_that_never_answers_does_not_keep_the_run(
    receiver: Receiver,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(
        receiver.server.RequestHandlerClass, "do_POST", lambda handler: answered.wait()
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    begun = time.monotonic()
    try:
        assert not run(diamond()).failures
        assert time.monotonic() - begun < 25  # the SDK's own patience is 30 seconds
    finally:
        answered.set()
    assert "the last spans of the trace were not taken within 3 s" in warnings(caplog)
