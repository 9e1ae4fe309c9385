"""A collector that keeps what it gets: OTLP's trace service over gRPC."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Span:
    """As it came: ids in hexadecimal, an empty parent for a root."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    """Of whoever made it: service, process."""
    is_error: bool
    events: list[tuple[str, dict[str, Any]]]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a port of its own while it is entered."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop(None)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        found = [
            Span(
                service=_values(resource.resource.attributes).get("service.name", ""),
                name=span.name,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                attributes=_values(span.attributes),
                resource=_values(resource.resource.attributes),
                is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                events=[(each.name, _values(each.attributes)) for each in span.events],
            )
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.spans += found
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, is_there: Callable[[list[Span]], bool], timeout_s: float = 20) -> list[Span]:
        """The spans, once they are what is waited for."""
        end_s = time.monotonic() + timeout_s
        while True:
            with self._lock:
                spans = list(self.spans)
            if is_there(spans):
                return spans
            assert time.monotonic() < end_s, [(s.service, s.name, s.parent) for s in spans]
            time.sleep(0.1)


def descends(span: Span, ancestor: Span, spans: list[Span]) -> bool:
    """Whether one of two spans of a trace is below the other, by the parents that they name."""
    by_id = {(each.trace, each.id): each for each in spans}
    above: Span | None = span
    while above is not None and above.id != ancestor.id:
        above = by_id.get((above.trace, above.parent))
    return above is not None and span.id != ancestor.id


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}
