"""What is sampled, and what is noted of it."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from app.runtime.log import CorrelationFilter, JsonFormatter
from app.tracing import recorder
from app.tracing.context import LENGTH, trace_of, traceparent_in, traceparent_of
from app.tracing.exporter import RATIO, is_wanted, open_exporter, ratio_of
from app.tracing.recorder import Recorder, Span, Tracer, recorded, recorded_batch, recording
from tests.making import NODE, event, node

CALLER = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def tracer(ratio: float = 1.0, limit: int = 100, **given: Any) -> tuple[Tracer, list[Span]]:
    """A tracer, and the spans that it exports."""
    found: list[Span] = []

    def export(spans: Sequence[Span]) -> None:
        found.extend(spans)

    return Tracer(export, ratio=ratio, limit=limit, **given), found


def begun(ratio: float = 1.0) -> tuple[Recorder, list[Span]]:
    """A recorder, and the spans that it exports."""
    made, found = tracer(ratio)
    trace = made.begin()
    assert trace is not None
    return trace, found


@pytest.mark.parametrize(
    ("traceparent", "is_sampled"),
    [
        (CALLER, True),
        (CALLER[:-2] + b"00", False),
        (CALLER[:-2] + b"03", True),
        (b"cc" + CALLER[2:] + b"-more", True),
    ],
)
def test_the_caller_decides(traceparent: bytes, is_sampled: bool) -> None:
    """The flag of a caller's context counts, whatever the share; the trace goes on below the caller's span."""
    for ratio in (0.0, 1.0):
        trace = tracer(ratio)[0].begin(traceparent)
        assert (trace is not None) is is_sampled
        if trace is not None:
            assert f"{trace.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
            assert trace.parent_id == 0x00F067AA0BA902B7


@pytest.mark.parametrize("traceparent", [b"", b"00-zz", CALLER[:-3], b"00" + CALLER[2:].upper()])
def test_a_context_that_is_none_is_as_if_there_were_none(traceparent: bytes) -> None:
    """A header that is not well-formed decides nothing."""
    assert trace_of(traceparent) is None
    assert tracer(0.0)[0].begin(traceparent) is None
    assert tracer(1.0)[0].begin(traceparent) is not None


def test_a_context_of_zeros_begins_nothing() -> None:
    """Ids of zeros are not valid (W3C Trace Context, section 3.2.2.3)."""
    assert tracer()[0].begin(b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01") is None
    assert tracer()[0].begin(CALLER[:36] + b"0" * 16 + b"-01") is None


def test_the_share_is_met() -> None:
    """About the share of what nobody has decided about is sampled."""
    made, _ = tracer(0.1, limit=1_000_000)
    assert 1_600 < sum(made.begin() is not None for _ in range(20_000)) < 2_400
    assert not any(tracer(0.0)[0].begin() for _ in range(1000))


def test_a_second_has_its_limit() -> None:
    """Beyond the limit nothing more is sampled, until the next second."""
    now = 10.0
    made, _ = tracer(limit=3, clock=lambda: now)
    assert [made.begin() is not None for _ in range(5)] == [True, True, True, False, False]
    now = 11.2
    assert [made.begin(CALLER) is not None for _ in range(4)] == [True, True, True, False]


def test_spans_are_exported_together() -> None:
    """They are handed over when the uppermost span ends; what comes later is dropped, and nobody records any more."""
    trace, found = begun()
    with recorded(trace):
        assert recording() is trace
        trace.statement("primary", "read", 0.5, 3, None)
        below = trace.child()
        below.statement("scans", "count", 0.1, None, "lost_race")
        below.end("below")
        assert found == []
        trace.end("above", error="500")
        assert recording() is None
        trace.statement("primary", "late", 0.5, 3, None)
        trace.end("again")
    read, count, child, root = found
    assert (root.name, root.parent_id, root.error, root.is_remote) == ("above", None, "500", False)
    assert read.parent_id == child.parent_id == root.span_id
    assert (count.parent_id, count.error) == (child.span_id, "lost_race")
    assert read.attributes["db.response.returned_rows"] == 3
    assert read.ended - read.began == pytest.approx(0.5)
    assert len({span.span_id for span in found}) == len({id(span) for span in found})


def test_a_trace_has_a_bound() -> None:
    """A long piece of work does not fill the memory: what is noted beyond the bound is dropped."""
    trace, found = begun()
    for _ in range(recorder.MOST_SPANS + 50):
        trace.statement("primary", "read", 0.1, 1, None)
    trace.end("work")
    assert len(found) == recorder.MOST_SPANS + 1
    assert found[-1].name == "work"


def test_a_batch_gives_each_message_the_context_of_its_cause() -> None:
    """A message about an entity has the context of the sampled event about it, and no other one has any."""
    (one, _), (two, found) = begun(), begun()
    joined = [
        (event("registration.initiated", 1, entity_id=node(number)), trace, 0.0)
        for number, trace in ((1, one), (2, two))
    ]
    with recorded_batch("events", joined, 7):
        inside = recording()
        assert inside is not None
        keys = [event("registration.initiated", 1, entity_id=node(number)).key for number in (1, 2, 3)]
        assert [inside.traceparent_for(key) for key in keys] == [one.traceparent, two.traceparent, None]
    assert recording() is None
    one.end("one")
    two.end("two")
    assert [span.name for span in found] == ["wait", "two"]
    assert one.traceparent_for(object()) == one.traceparent


def test_a_batch_that_fails_says_so() -> None:
    """The error that ends a batch is named in its span."""
    trace, found = begun()
    with pytest.raises(ZeroDivisionError), recorded_batch("events", [(None, trace, None)], 1):
        1 / 0  # noqa: B018
    trace.end("work")
    assert [(span.name, span.error) for span in found] == [("batch events", "ZeroDivisionError"), ("work", None)]


def test_a_context_is_found_at_the_end_of_an_envelope() -> None:
    """It is found where it is the last field, and nowhere else."""
    traceparent = traceparent_of(1, 2)
    assert len(traceparent) == LENGTH
    envelope = json.dumps({"id": str(NODE), "traceparent": traceparent}, separators=(",", ":")).encode()
    assert traceparent_in(envelope) == traceparent.encode()
    within = json.dumps({"data": {"traceparent": traceparent}}, separators=(",", ":")).encode()
    for other in (within, b"", b"{}", envelope[:-1], envelope + b" "):
        assert traceparent_in(other) is None


def test_a_log_line_has_the_ids(caplog: pytest.LogCaptureFixture) -> None:
    """A line that is written while sampled work runs has its ids; a line after it has none."""
    trace, _ = begun()
    filter_ = CorrelationFilter(lambda: None)

    def line() -> dict[str, Any]:
        record = logging.LogRecord("app.a", logging.INFO, "a.py", 1, "said", None, None)
        filter_.filter(record)
        return dict(json.loads(JsonFormatter().format(record)))

    with recorded(trace):
        found = line()
        assert (found["trace_id"], found["span_id"]) == (f"{trace.trace_id:032x}", f"{trace.span_id:016x}")
        trace.end("work")
        assert "trace_id" not in line()


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_environment_asks_for_traces(environment: dict[str, str], wanted: bool) -> None:
    """An endpoint does, unless another variable switches traces off."""
    assert is_wanted(environment) is wanted


@pytest.mark.parametrize(
    ("given", "ratio"), [(None, RATIO), ("0", 0.0), ("0.5", 0.5), ("1", 1.0), ("2", RATIO), ("much", RATIO)]
)
def test_the_share_comes_from_the_environment(
    given: str | None, ratio: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A share that is none is named in the log, and the default taken."""
    assert ratio_of({} if given is None else {"OTEL_TRACES_SAMPLER_ARG": given}) == ratio
    assert ("OTEL_TRACES_SAMPLER_ARG" in caplog.text) is (given in {"2", "much"})


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where an endpoint is set for a whole platform, the service starts without traces, and says how to get them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    assert open_exporter() is None
    assert "projection-query-service[tracing]" in caplog.text
