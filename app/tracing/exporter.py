"""The export of spans by OpenTelemetry's SDK: the extra `tracing`, imported only where an endpoint is set."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from app.tracing.recorder import Span, SpanKind, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
RATIO = 0.01  # unless OTEL_TRACES_SAMPLER_ARG says otherwise
SERVICE = "pqs"  # unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says otherwise
NANOSECONDS = 1_000_000_000  # in a second


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names an endpoint, and does not switch traces off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").lower() == "none":
        return False
    return any(environment.get(name) for name in ENDPOINTS)


def ratio_of(environment: Mapping[str, str] = os.environ) -> float:
    """The share that OTEL_TRACES_SAMPLER_ARG names; a value that is none is named in the log, and RATIO taken."""
    given = environment.get("OTEL_TRACES_SAMPLER_ARG")
    if given is None:
        return RATIO
    try:
        ratio = float(given)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        log.warning("OTEL_TRACES_SAMPLER_ARG is no number from 0 to 1, and %s is taken: %r", RATIO, given)
        return RATIO
    return ratio


class Exporter:
    """Sends spans to an OTLP receiver over HTTP, in a thread of its own, as the OTEL_ variables say."""

    def __init__(self) -> None:
        """Raises ImportError where the extra `tracing` is not installed."""
        from opentelemetry import trace as api  # noqa: PLC0415 - an extra
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk import trace as sdk  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {"service.name": SERVICE})
        scope = InstrumentationScope("pqs")
        sampled = api.TraceFlags(api.TraceFlags.SAMPLED)
        kinds = {kind: api.SpanKind[kind.name] for kind in SpanKind}
        succeeded, failed = api.Status(), api.Status(api.StatusCode.ERROR)

        def readable(span: Span, now: int, clock: float) -> "ReadableSpan":
            trace_id, parent = span.trace_id, None
            if span.parent_id is not None:
                parent = api.SpanContext(trace_id, span.parent_id, span.is_remote, sampled)
            attributes = span.attributes if span.error is None else {**span.attributes, "error.type": span.error}
            return sdk.ReadableSpan(
                name=span.name,
                context=api.SpanContext(trace_id, span.span_id, is_remote=False, trace_flags=sampled),
                parent=parent,
                resource=resource,
                attributes=attributes,
                links=[api.Link(api.SpanContext(*link, False, sampled)) for link in span.links],
                kind=kinds[span.kind],
                status=succeeded if span.error is None else failed,
                start_time=now - round((clock - span.began) * NANOSECONDS),
                end_time=now - round((clock - span.ended) * NANOSECONDS),
                instrumentation_scope=scope,
            )

        self._readable = readable
        self._processor = BatchSpanProcessor(OTLPSpanExporter())

    def export(self, spans: Sequence[Span]) -> None:
        """Queue spans to be sent. Where the queue is full, the oldest are lost."""
        now, clock = time.time_ns(), time.perf_counter()  # the same moment by two clocks
        for span in spans:
            self._processor.on_end(self._readable(span, now, clock))

    def flush(self) -> None:
        """Send what is queued, and wait for it."""
        self._processor.force_flush()

    async def close(self) -> None:
        """Send what is queued, and end the thread."""
        await asyncio.to_thread(self._processor.shutdown)


def open_exporter() -> Exporter | None:
    """The exporter that the environment asks for, or None."""
    if not is_wanted():
        return None
    try:
        return Exporter()
    except ImportError as error:
        extra = {"event": "tracing.missing"}
        log.warning(
            "no traces: %s is set, and the extra is not installed: "
            "pip install 'projection-query-service[tracing]' (%s)",
            ENDPOINTS[0],
            error,
            extra=extra,
        )
        return None


def tracer_to(exporter: Exporter, limit: int) -> Tracer:
    """A tracer with the share that the environment names, and at most `limit` traces a second."""
    return Tracer(exporter.export, ratio=ratio_of(), limit=limit)
