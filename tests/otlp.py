"""An OTLP receiver for tests: a real HTTP server that decodes what the exporter sends."""

import gzip
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

PATIENCE = 20.0  # seconds


class ReceivedSpan(Struct, frozen=True):
    """A span as it was received; ids are in hexadecimal, times in nanoseconds since 1970."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int
    attributes: dict[str, str | int]
    links: list[tuple[str, str]]
    failed: bool
    service: str


class Receiver:
    """The spans that were received."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[ReceivedSpan] = []
        self.paths: set[str] = set()

    def named(self, name: str, number: int = 1) -> list[ReceivedSpan]:
        """The spans of this name, as soon as there are so many."""
        end = time.monotonic() + PATIENCE
        while len(found := [span for span in self.spans if span.name == name]) < number:
            assert time.monotonic() < end, (name, sorted({span.name for span in self.spans}))
            time.sleep(0.02)
        return found

    def below(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """The spans right below this one, in the order of their beginnings."""
        found = [each for each in self.spans if each.parent_id == span.span_id and each.trace_id == span.trace_id]
        return sorted(found, key=lambda each: each.began)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a port of 127.0.0.1."""
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Take an export."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.paths.add(self.path)
            received.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    received.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource in request.resource_spans:
        service = str(_values(resource.resource.attributes)["service.name"])
        for scope in resource.scope_spans:
            assert scope.scope.name == "pqs"
            for span in scope.spans:
                yield ReceivedSpan(
                    span.name,
                    trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _values(span.attributes),
                    [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    span.status.code == trace_pb2.Status.StatusCode.STATUS_CODE_ERROR,
                    service,
                )


def _values(attributes: Iterable[KeyValue]) -> dict[str, str | int]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}
