"""Traces over OTLP: one span in the router, one in the variant's replica, and vLLM's own below it.

On where OpenTelemetry's own variables name an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`, or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`), off otherwise, at no cost: then nothing of OpenTelemetry is
imported. Sampling, protocol, headers and the service's name are its variables too. Names of
attributes are those of its semantic conventions for generative AI, and `quantile.*`. No text of a
request is ever recorded.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serve_app.config.tracing import GRPC, traces_endpoint, traces_protocol
from serve_app.domain.observation import Observation
from serve_app.engines.engine import Scope

SPAN = "quantile.span"
"""Key of a scope: its `RequestSpan`; missing where there is no trace."""
_CONTEXT_HEADERS = frozenset({b"traceparent", b"tracestate"})
_REQUEST_ID = b"x-request-id"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_FLUSH_MS = 2000
_SERVER_ERROR = 500

logger = logging.getLogger("ray.serve")


def spans_of(service: str, environ: Mapping[str, str] = os.environ) -> "Spans | None":
    """What makes the spans of this process; None where no endpoint is named.

    `service` is its name unless `OTEL_SERVICE_NAME` says another.
    """
    if traces_endpoint(environ) is None:
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    )
    provider = TracerProvider(resource=resource)  # its sampler is OTEL_TRACES_SAMPLER's
    provider.add_span_processor(BatchSpanProcessor(_exporter(environ)))
    return Spans(provider)


def _exporter(environ: Mapping[str, str]) -> Any:
    if traces_protocol(environ) == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter()


class Spans:
    """Makes spans of requests, with OpenTelemetry's provider."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("quantile")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, scope: Scope, name: str, attributes: Mapping[str, Any]) -> Iterator[Scope]:
        """A span while one request is served: a child of the context that its headers carry.

        Gives the scope to serve: what is sent on from it carries this span's context. An exception
        is recorded by its type alone, since its message may quote the request.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        headers = scope["headers"]
        carrier: dict[str, str] = {}
        told = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "gen_ai.operation.name": _OPERATIONS.get(scope["path"], "other"),
            **attributes,
        }
        for key, value in headers:
            if key in _CONTEXT_HEADERS:
                carrier[key.decode()] = value.decode("latin-1")
            elif key == _REQUEST_ID:
                told["quantile.request.id"] = value.decode("latin-1")
        span = self._tracer.start_span(
            name, self._propagator.extract(carrier), kind=SpanKind.SERVER, attributes=told
        )
        onward: dict[str, str] = {}
        self._propagator.inject(onward, set_span_in_context(span))
        rest = [pair for pair in headers if pair[0] not in _CONTEXT_HEADERS]
        own = [(key.encode(), value.encode()) for key, value in onward.items()]
        traced = {**scope, "headers": rest + own}
        request = RequestSpan(span)
        if span.is_recording():
            traced[SPAN] = request
        try:
            yield traced
        except BaseException as error:
            if not request.has_failed:  # else what it failed by says more
                request.failed(type(error).__name__)
            raise
        finally:
            span.end()

    def flush(self) -> None:
        """Send what is left now, for at most two seconds."""
        self._provider.force_flush(_FLUSH_MS)

    def close(self) -> None:
        """Send what is left, and stop."""
        try:
            self.flush()
            self._provider.shutdown()
        except Exception:
            logger.exception("the last spans could not be sent")


class RequestSpan:
    """What is told of one request."""

    def __init__(self, span: Any) -> None:
        self.has_failed = False
        self._span = span

    @property
    def trace_id(self) -> str:
        """Of the trace that it belongs to, in hexadecimal."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def routed(self, model: str, variant: str, reason: str, split: Mapping[str, int]) -> None:
        """Who serves it, and why."""
        self._span.update_name(f"route {model}")
        self._span.set_attributes(
            {
                "gen_ai.request.model": model,
                "gen_ai.response.model": f"{model}@{variant}",
                "quantile.variant": variant,
                "quantile.route.reason": reason,
                "quantile.split": ",".join(f"{name}={bp}" for name, bp in split.items()),
            }
        )

    def attempt_failed(self, variant: str, error: Exception) -> None:
        """A variant did not take it; `error` says why in words of ours, none of the request's."""
        told = {
            "quantile.variant": variant,
            "error.type": type(error).__name__,
            "quantile.reason": str(error),
        }
        self._span.add_event("quantile.attempt.failed", told)

    def answered(self, seen: Observation, ending: str) -> None:
        """How its answer ended."""
        told = {
            "gen_ai.usage.input_tokens": seen.prompt_tokens,
            "gen_ai.usage.output_tokens": seen.completion_tokens,
            "gen_ai.server.time_to_first_token": seen.ttft_s,
            "quantile.whole": seen.whole,
            "quantile.ending": ending,
        }
        self._span.set_attributes(
            {name: value for name, value in told.items() if value is not None}
        )
        self.status(seen.status)
        if not seen.whole:
            self.failed(ending)

    def status(self, status: int) -> None:
        """The HTTP status of its answer; a 5xx is an error."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= _SERVER_ERROR:
            self.failed(str(status))

    def failed(self, kind: str) -> None:
        """It ended in an error of this kind."""
        from opentelemetry.trace import StatusCode

        self.has_failed = True
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR, kind)
