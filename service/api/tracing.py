"""Traces of requests, as OpenTelemetry spans over OTLP: where the time of a request went.

    POST /sample                        the request, child of the caller's span (traceparent)
      decode                            its body: read, decoded, checked, made a job
      queue                             from acceptance to its first batch
      compute                           from there to its result
        batch                           a batch with rows of it, or several in turn
        ...
      encode                            its answer: in data units, written

Stages are noted as they pass, and become spans at the end of a request, off its way. Without an
endpoint there is no tracing, and opentelemetry need not be installed.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from starlette.datastructures import Headers
from starlette.types import Scope
from typing_extensions import override

from noneq.version import __version__
from service.engine.results import Ticket
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, str | int | float | bool]


class Trace(ABC):
    """A request's trace. Abstract: `Untraced`, or `SpanTrace`.

    Attributes:
        ids: `trace_id` and `span_id` for the log; empty if there is no trace.
        parent: the header that names the request's own span; None if there is none.
    """

    ids: Mapping[str, str] = {}
    parent: str | None = None

    @abstractmethod
    def note(self, name: str, begun: float, ended: float) -> None:
        """Note a stage, by its monotonic seconds."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note the block as a stage."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.note(name, begun, time.monotonic())

    @abstractmethod
    def follow(self, ticket: Ticket[Any]) -> None:
        """Note the stages of an accepted job, from now to the end of the request."""

    @abstractmethod
    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """End the request, which was called this."""


@final
class Untraced(Trace):
    """Notes nothing."""

    @override
    def note(self, name: str, begun: float, ended: float) -> None:
        pass

    @override
    def follow(self, ticket: Ticket[Any]) -> None:
        pass

    @override
    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        pass


UNTRACED = Untraced()


class Tracing(ABC):
    """Begins the traces of an app. Abstract: `NoTracing`, or `SpanTracing`."""

    @abstractmethod
    def begin(self, scope: Scope) -> Trace:
        """Begin a request's trace."""

    @abstractmethod
    def close(self) -> None:
        """Send what has not been sent."""


@final
class NoTracing(Tracing):
    """No traces."""

    @override
    def begin(self, scope: Scope) -> Trace:
        return UNTRACED

    @override
    def close(self) -> None:
        pass


@final
class SpanTrace(Trace):
    """The stages of a request, which become children of its span.

    Args:
        tracer: makes the spans.
        span: the request's own, which records.
    """

    def __init__(self, tracer: "Tracer", span: "Span") -> None:
        context = span.get_span_context()
        trace, own = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        self.ids = {"trace_id": trace, "span_id": own}
        self.parent = f"00-{trace}-{own}-{int(context.trace_flags):02x}"
        self._tracer, self._span = tracer, span
        # Spans have the time of day; stages are measured by a clock that is never set.
        self._offset = time.time() - time.monotonic()
        self._stages: list[tuple[str, float, float]] = []
        self._ticket: tuple[Ticket[Any], float] | None = None
        self._ended: float | None = None  # of the job

    @override
    def note(self, name: str, begun: float, ended: float) -> None:
        self._stages.append((name, begun, ended))

    @override
    def follow(self, ticket: Ticket[Any]) -> None:
        self._ticket = ticket, time.monotonic()
        ticket.future.add_done_callback(self._job_ended)

    def _job_ended(self, _: object) -> None:
        self._ended = time.monotonic()

    @override
    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        self._span.update_name(name)
        self._span.set_attributes(dict(attributes))
        if self._span.is_recording():
            context = set_span_in_context(self._span)
            for stage, begun, ended in self._stages:
                self._child(stage, begun, ended, context)
            if self._ticket is not None:
                self._add_job(*self._ticket, context)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _add_job(self, ticket: Ticket[Any], accepted: float, context: Any) -> None:  # noqa: ANN401
        from opentelemetry.trace import set_span_in_context

        ended = time.monotonic() if self._ended is None else self._ended
        waited = ticket.queue_seconds
        if waited is None:  # it was cancelled, or failed, before its first batch
            self._child("queue", accepted, ended, context)
            return
        started = min(accepted + waited, ended)
        self._child("queue", accepted, started, context)
        compute = self._begin("compute", started, context)
        compute.set_attribute("noneq.network_evaluations", ticket.done)
        inner = set_span_in_context(compute)
        for each in ticket.batches:
            batch = self._begin("batch", each.begun, inner)
            batch.set_attribute("noneq.batches", each.batches)
            batch.set_attribute("noneq.network_evaluations", each.evaluations)
            batch.set_attribute("noneq.rows", each.rows)
            batch.end(self._time(each.ended))
        compute.end(self._time(ended))

    def _child(self, name: str, begun: float, ended: float, context: Any) -> None:  # noqa: ANN401
        self._begin(name, begun, context).end(self._time(ended))

    def _begin(self, name: str, begun: float, context: Any) -> "Span":  # noqa: ANN401
        return self._tracer.start_span(name, context, start_time=self._time(begun))

    def _time(self, seconds: float) -> int:
        """The time of day, in nanoseconds."""
        return int((seconds + self._offset) * 1e9)


@final
class SpanTracing(Tracing):
    """Traces by an OpenTelemetry provider.

    Args:
        provider: samples the requests, and takes the spans.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.propagate import get_global_textmap

        self._provider = provider
        self._tracer = provider.get_tracer("noneq", __version__)
        self._propagator = get_global_textmap()

    @override
    def begin(self, scope: Scope) -> Trace:
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract(Headers(scope=scope))
        span = self._tracer.start_span(scope["method"], context, SpanKind.SERVER)
        return SpanTrace(self._tracer, span)

    @override
    def close(self) -> None:
        self._provider.shutdown()


def tracing_of(settings: Settings) -> Tracing:
    """Tracing as the settings say.

    Raises:
        ValueError: there is an endpoint, but no opentelemetry.
    """
    if not settings.otlp_endpoint:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ValueError(
            "NONEQ_OTLP_ENDPOINT is set, but opentelemetry is not installed: "
            "pip install 'noneq[serve,otel]'"
        ) from None
    resource = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "noneq"}))
    provider = TracerProvider(resource=resource)
    endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return SpanTracing(provider)
