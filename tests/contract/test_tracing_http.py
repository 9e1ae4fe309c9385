"""Spans over OTLP as HTTP, where OpenTelemetry's variables ask for it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serve_app.config.tracing import traces_url
from serve_app.telemetry.tracing import spans_of

SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}


@pytest.fixture
def collector():
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Nothing to stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.got = got
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_they_go_to_the_address_that_an_engines_exporter_is_given(collector, monkeypatch):
    """Ours reads the variables by itself; vLLM's is told a whole address: both must be one."""
    base = f"http://127.0.0.1:{collector.server_port}"
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": base,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    spans = spans_of("quantile-router", environ)
    assert spans is not None
    with spans.request(SCOPE, "route m", {}):
        pass
    spans.close()
    ((path, request),) = collector.got
    assert base + path == traces_url(environ)
    (resource,) = request.resource_spans
    named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert named["service.name"] == "quantile-router"
    assert [span.name for each in resource.scope_spans for span in each.spans] == ["route m"]
