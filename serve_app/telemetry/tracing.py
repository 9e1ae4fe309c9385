"""Traces over OTLP: one span in the router, one in the variant's replica, and vLLM's own below it.

On where OpenTelemetry's own variables name an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`, or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`), off otherwise, at no cost: then nothing of OpenTelemetry is
imported. Sampling, protocol, headers and the service's name are its variables too. Names of
attributes are those of its semantic conventions for generative AI, and `quantile.*`. No text of a
request is ever recorded.

OpenTelemetry's SDK decides what is sampled, and batches and sends. A span itself is kept here in
plain fields and becomes the SDK's at its end: one of the SDK's own, which locks, checks and copies
at each attribute, cost the router four times as much (decision 0027).
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from serve_app.config.tracing import GRPC, traces_endpoint, traces_protocol
from serve_app.domain.observation import Observation
from serve_app.engines.engine import Scope

SPAN = "quantile.span"
"""Key of a scope: its `RequestSpan`; missing where there is no trace."""
_TRACEPARENT, _TRACESTATE, _REQUEST_ID = b"traceparent", b"tracestate", b"x-request-id"
_CONTEXT_HEADERS = frozenset({_TRACEPARENT, _TRACESTATE})
_MAX_ID_CHARS = 200
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
    return Spans(provider, BatchSpanProcessor(_exporter(environ)))


def _exporter(environ: Mapping[str, str]) -> Any:
    if traces_protocol(environ) == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter()


class Spans:
    """Makes spans of requests. Of OpenTelemetry's `provider` it takes sampler, ids and resource;
    `processor` gets the spans that are sampled, each when it has ended.
    """

    def __init__(self, provider: Any, processor: Any) -> None:
        from opentelemetry.context import Context
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
        from opentelemetry.trace.propagation import get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._sampler, self._ids = provider.sampler, provider.id_generator
        self._resource = provider.resource
        self._processor = processor
        self._extract = TraceContextTextMapPropagator().extract
        self._span_of, self._no_parent = get_current_span, Context()
        self._context, self._kind = SpanContext, SpanKind.SERVER
        self._flags = TraceFlags(TraceFlags.DEFAULT), TraceFlags(TraceFlags.SAMPLED)
        self._made: Any = ReadableSpan
        self._event: Any = Event
        self._scope = InstrumentationScope("quantile")
        self._well = Status(StatusCode.UNSET)
        self._ill = partial(Status, StatusCode.ERROR)

    @contextmanager
    def request(self, scope: Scope, name: str, attributes: Mapping[str, Any]) -> Iterator[Scope]:
        """A span while one request is served: a child of the context that its headers carry.

        Gives the scope to serve: what is sent on from it carries this span's context. An exception
        is recorded by its type alone, since its message may quote the request.
        """
        path = scope["path"]
        told = {
            "http.request.method": scope["method"],
            "url.path": path,
            "gen_ai.operation.name": _OPERATIONS.get(path, "other"),
            **attributes,
        }
        carrier: dict[str, str] = {}
        onward = []
        for pair in scope["headers"]:
            key, value = pair
            if key in _CONTEXT_HEADERS:
                carrier[key.decode()] = value.decode("latin-1")
                continue
            if key == _REQUEST_ID:
                told["quantile.request.id"] = value.decode("latin-1")[:_MAX_ID_CHARS]
            onward.append(pair)
        context, parent, is_sampled = self._begin(name, carrier, told)
        onward += _context_headers(context)
        traced = {**scope, "headers": onward}
        if not is_sampled:
            yield traced
            return
        span = traced[SPAN] = RequestSpan(name, context.trace_id, told)
        try:
            yield traced
        except BaseException as error:
            if span.error is None:  # else what it failed by says more
                span.failed(type(error).__name__)
            raise
        finally:
            self._end(span, context, parent)

    def _begin(self, name: str, carrier: dict[str, str], told: dict[str, Any]) -> Any:
        """The span's own context and its parent's (None for a root), and whether it is sampled."""
        above, parent = self._no_parent, None
        if carrier:
            above = self._extract(carrier)
            parent = self._span_of(above).get_span_context()
            if not parent.is_valid:
                parent = None
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        sampled = self._sampler.should_sample(above, trace_id, name, self._kind, told)
        is_sampled = sampled.decision.is_sampled()
        if is_sampled and sampled.attributes is not told:
            told.update(sampled.attributes or {})
        span_id, flags = self._ids.generate_span_id(), self._flags[is_sampled]
        context = self._context(trace_id, span_id, False, flags, sampled.trace_state)
        return context, parent, is_sampled

    def _end(self, span: "RequestSpan", context: Any, parent: Any) -> None:
        made = self._made(
            name=span.name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=[self._event(*each) for each in span.events],
            kind=self._kind,
            status=self._well if span.error is None else self._ill(span.error),
            start_time=span.start_ns,
            end_time=time.time_ns(),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(made)

    def flush(self) -> None:
        """Send what is left now, for at most two seconds."""
        self._processor.force_flush(_FLUSH_MS)

    def close(self) -> None:
        """Send what is left, and stop."""
        try:
            self.flush()
            self._processor.shutdown()
        except Exception:
            logger.exception("the last spans could not be sent")


def _context_headers(context: Any) -> list[tuple[bytes, bytes]]:
    """W3C's headers (Trace Context, level 1) of a span's context."""
    ids = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    headers = [(_TRACEPARENT, ids.encode())]
    if context.trace_state:
        headers.append((_TRACESTATE, context.trace_state.to_header().encode("latin-1")))
    return headers


class RequestSpan:
    """What is told of one request that is sampled."""

    __slots__ = ("_trace_id", "attributes", "error", "events", "name", "start_ns")

    def __init__(self, name: str, trace_id: int, attributes: dict[str, Any]) -> None:
        self.name = name
        self.attributes = attributes
        self.events: list[tuple[str, dict[str, str], int]] = []
        """Name, attributes, nanoseconds since 1970."""
        self.error: str | None = None
        """What it ended in; None: not in an error."""
        self.start_ns = time.time_ns()
        self._trace_id = trace_id

    @property
    def trace_id(self) -> str:
        """Of the trace that it belongs to, in hexadecimal."""
        return f"{self._trace_id:032x}"

    def routed(self, model: str, variant: str, reason: str, split: Mapping[str, int]) -> None:
        """Who serves it, and why."""
        self.name = f"route {model}"
        told = self.attributes
        told["gen_ai.request.model"] = model
        told["gen_ai.response.model"] = f"{model}@{variant}"
        told["quantile.variant"] = variant
        told["quantile.route.reason"] = str(reason)
        told["quantile.split"] = ",".join([f"{name}={bp}" for name, bp in split.items()])

    def attempt_failed(self, variant: str, error: Exception) -> None:
        """A variant did not take it; `error` says why in words of ours, none of the request's."""
        told = {
            "quantile.variant": variant,
            "error.type": type(error).__name__,
            "quantile.reason": str(error),
        }
        self.events.append(("quantile.attempt.failed", told, time.time_ns()))

    def answered(self, seen: Observation, ending: str) -> None:
        """How its answer ended."""
        told = self.attributes
        told["quantile.whole"] = seen.whole
        told["quantile.ending"] = ending
        if seen.ttft_s is not None:
            told["gen_ai.server.time_to_first_token"] = seen.ttft_s
        if seen.prompt_tokens is not None:
            told["gen_ai.usage.input_tokens"] = seen.prompt_tokens
        if seen.completion_tokens is not None:
            told["gen_ai.usage.output_tokens"] = seen.completion_tokens
        self.status(seen.status)
        if not seen.whole:
            self.failed(ending)

    def status(self, status: int) -> None:
        """The HTTP status of its answer; a 5xx is an error."""
        self.attributes["http.response.status_code"] = status
        if status >= _SERVER_ERROR:
            self.failed(str(status))

    def failed(self, kind: str) -> None:
        """It ended in an error of this kind."""
        self.error = self.attributes["error.type"] = kind
