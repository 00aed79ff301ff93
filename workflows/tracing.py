"""Sends a run as an OpenTelemetry trace, where OpenTelemetry's own variables ask for it."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from workflows.journal import Journal
from workflows.progress import FAILED
from workflows.spans import Trace
from workflows.steps import Step

logger = logging.getLogger(__name__)

_PLUGINS = "opentelemetry_traces_exporter"
_FLUSH_S = 3.0
_LEAST_QUEUE = 2048


@contextlib.contextmanager
def traced(journal: Journal, run_id: str, pipeline: str, steps: Sequence[Step]) -> Iterator[None]:
    """Send what the journal is told meanwhile as a trace, where the environment asks for it.

    A receiver that is not there fails nothing; the end waits three seconds for it at most.
    """
    processors = list(_processors(most_spans=len(steps) + 1))
    if not processors:
        yield
        return
    provider = _provider(processors)
    trace = Trace(provider.get_tracer("pretune"), run_id, pipeline, steps)
    journal.listeners.append(trace.take)
    try:
        yield
    except BaseException as error:
        trace.end(FAILED, time.time(), f"{type(error).__name__}: {error}")
        raise
    finally:
        journal.listeners.remove(trace.take)
        _close(provider)


def _processors(*, most_spans: int) -> Iterator[SpanProcessor]:
    """Of what OTEL_TRACES_EXPORTER names; without it of OTLP, where there is an endpoint for it."""
    env = os.environ.get
    has_endpoint = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env("OTEL_EXPORTER_OTLP_ENDPOINT")
    asked = env("OTEL_TRACES_EXPORTER") or ("otlp" if has_endpoint else "none")
    protocol = env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    for name in set(asked.replace(" ", "").split(",")) - {"none"}:
        try:
            yield _processor(otlp if name == "otlp" else name, most_spans)
        except Exception as error:  # each has errors of its own for settings that it refuses
            logger.warning("no trace is sent: exporter %s: %s", name, error)


def _processor(name: str, most_spans: int) -> SpanProcessor:
    try:
        plugin = entry_points(group=_PLUGINS)[name]
    except KeyError:
        way_out = "pip install 'pretune[otel]' brings otlp over HTTP"
        raise ModuleNotFoundError(f"{name} is not installed; {way_out}") from None
    exporter: SpanExporter = plugin.load()()
    logging.getLogger(type(exporter).__module__).addFilter(_is_news)
    # Steps that are reused end all at once.
    queue = max(int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", _LEAST_QUEUE)), most_spans)
    return BatchSpanProcessor(exporter, max_queue_size=queue)


def _provider(processors: Sequence[SpanProcessor]) -> TracerProvider:
    named = OTELResourceDetector().detect().attributes  # by OTEL_SERVICE_NAME, among others
    resource = Resource.create({"service.name": "pretune", **named})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def _close(provider: TracerProvider) -> None:
    """Send what is left, in bounded time: exporters try for ten seconds and more."""
    closing = threading.Thread(target=provider.shutdown, daemon=True)
    closing.start()
    closing.join(_FLUSH_S)
    if closing.is_alive():
        logger.warning("the last spans of the trace were not taken within %g s", _FLUSH_S)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a kind of message comes first: a lost receiver is told of with every try."""
    is_news = record.msg not in _told
    _told.add(record.msg)
    return is_news


_told: set[str] = set()
