"""Spans of the router and of a variant, in memory."""

import asyncio
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.config.tracing import traces_endpoint, traces_protocol, traces_url
from serve_app.domain.errors import EngineError
from serve_app.serving.passing import AnswerCutError
from serve_app.serving.router_app import RouterApp
from serve_app.serving.upstream import UpstreamTruncatedError
from serve_app.serving.variant_front import VariantFront
from serve_app.telemetry.tracing import Spans, spans_of
from tests.fakes.asgi import Exchange
from tests.fakes.engine import StubEngine
from tests.fakes.metrics import recording_meters
from tests.fakes.relay import FakeAnswer, FakeApplications, FakeRelay, FakeSleepers, busy, card_of

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
USAGE = b'{"usage":{"prompt_tokens":30,"completion_tokens":12,"total_tokens":42}}'
TOKEN = "0123456789abcdef"


class Traced:
    """A router over two scripted variants, and what it exported."""

    def __init__(self, **provider) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans = Spans(TracerProvider(**provider), SimpleSpanProcessor(self.exporter))
        self.relay = FakeRelay("a", "b")
        meters = replace(recording_meters(), spans=self.spans)
        args = RouterArgs(model="m", probe_interval_s=0.001)
        self.app = RouterApp(args, self.relay, meters, FakeApplications(), FakeSleepers())
        self.app.configure(RouterUserConfig(split={"a": 10_000, "b": 0}, fallback=("b",)))

    async def chat(self, *headers, **body):
        return await Exchange(self.app, "POST", CHAT, {"model": "m", **body}, headers)()

    @property
    def span(self):
        (span,) = self.exporter.get_finished_spans()
        return span

    def sent_on(self):
        """Trace id and span id of the context that the variant got."""
        (scope, _), *_ = self.relay.requests
        values = [value.decode() for name, value in scope["headers"] if name == b"traceparent"]
        (value,) = values
        return tuple(value.split("-")[1:3])


@pytest.fixture
async def traced():
    traced = Traced()
    yield traced
    traced.app.close()
    await asyncio.sleep(0)


async def test_a_span_continues_the_clients_trace_and_the_variant_gets_its_context(traced):
    stream = (("content-type", "text/event-stream"),)
    traced.relay.scripts["a"] = lambda: FakeAnswer(b"data: " + USAGE + b"\n\n", headers=stream)
    id_of_ours = ("x-request-id", "r-1")
    await traced.chat(CONTEXT, id_of_ours, messages=[{"role": "user", "content": "a secret"}])
    span = traced.span
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert traced.sent_on() == (TRACE, f"{span.context.span_id:016x}")
    assert span.name == "route m"
    told = dict(span.attributes)
    assert told.pop("gen_ai.server.time_to_first_token") >= 0
    assert told == {
        "http.request.method": "POST",
        "url.path": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m@a",
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 12,
        "quantile.variant": "a",
        "quantile.route.reason": "weighted",
        "quantile.split": "a=10000,b=0",
        "quantile.whole": True,
        "quantile.ending": "whole",
        "quantile.request.id": "r-1",
    }
    assert "secret" not in span.to_json()


async def test_an_answer_that_is_no_stream_tells_no_time_to_a_first_token(traced):
    traced.relay.scripts["a"] = lambda: FakeAnswer(USAGE)
    await traced.chat()
    assert "gen_ai.server.time_to_first_token" not in traced.span.attributes


async def test_without_a_context_a_trace_begins(traced):
    await traced.chat()
    assert traced.span.parent is None
    assert traced.sent_on()[0] == f"{traced.span.context.trace_id:032x}"


async def test_a_fallback_shows_who_served_and_who_did_not(traced):
    traced.relay.scripts["a"] = busy("it is full")
    await traced.chat()
    assert traced.span.attributes["quantile.variant"] == "b"
    assert traced.span.attributes["quantile.route.reason"] == "fallback"
    assert traced.span.status.is_ok
    (event,) = traced.span.events
    assert event.name == "quantile.attempt.failed"
    assert dict(event.attributes) == {
        "quantile.variant": "a",
        "error.type": "VariantBusyError",
        "quantile.reason": "it is full",
    }


async def test_a_request_that_nobody_took_shows_every_attempt(traced):
    traced.relay.scripts["a"] = traced.relay.scripts["b"] = busy()
    await traced.chat()
    assert [each.attributes["quantile.variant"] for each in traced.span.events] == ["a", "b"]
    assert traced.span.attributes["error.type"] == "VariantUnavailableError"


async def test_a_refused_request_is_an_error_without_its_words(traced):
    await traced.chat(model="a secret")
    assert traced.span.attributes["error.type"] == "UnknownModelError"
    assert not traced.span.status.is_ok
    assert "secret" not in traced.span.to_json()
    assert traced.relay.requests == []


async def test_an_answer_that_breaks_off_is_an_error(traced):
    sse = (("content-type", "text/event-stream"),)
    traced.relay.scripts["a"] = lambda: FakeAnswer(
        b"data: {}\n\n", UpstreamTruncatedError("gone"), headers=sse
    )
    await traced.chat(stream=True)
    told = traced.span.attributes
    assert told["quantile.whole"] is False
    assert (told["quantile.ending"], told["error.type"]) == ("broke_off", "broke_off")
    assert told["http.response.status_code"] == 200
    assert not traced.span.status.is_ok


async def test_an_answer_that_is_cut_is_called_by_its_cause(traced):
    traced.relay.scripts["a"] = lambda: FakeAnswer(b'{"half":', UpstreamTruncatedError("gone"))
    with pytest.raises(AnswerCutError):
        await traced.chat()
    assert traced.span.attributes["error.type"] == "broke_off"


async def test_a_client_that_leaves_is_called_so(traced):
    traced.relay.scripts["a"] = lambda: FakeAnswer(b"{", asyncio.Event())
    asked = asyncio.ensure_future(traced.chat())
    await asyncio.sleep(0.05)
    assert len(traced.relay.answers) == 1
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert traced.span.attributes["error.type"] == "client_left"


async def test_a_variants_own_5xx_is_an_error(traced):
    traced.relay.scripts["a"] = lambda: FakeAnswer(b"{}", status=500)
    await traced.chat()
    assert traced.span.attributes["error.type"] == "500"
    assert not traced.span.status.is_ok


async def test_what_is_not_sampled_is_not_exported_and_its_context_says_so():
    traced = Traced(sampler=ALWAYS_OFF)
    await traced.chat(CONTEXT)
    assert traced.exporter.get_finished_spans() == ()
    (scope, _), *_ = traced.relay.requests
    assert dict(scope["headers"])[b"traceparent"].endswith(b"-00")
    traced.app.close()
    await asyncio.sleep(0)


class TracedVariant:
    """A front over an engine that sends these messages, and what it exported."""

    def __init__(self, *said) -> None:
        self.exporter = InMemorySpanExporter()
        self.contexts: list[str] = []
        self.said = said
        self.engine = StubEngine(self._app)
        spans = Spans(TracerProvider(), SimpleSpanProcessor(self.exporter))
        self.front = VariantFront(self.engine, card_of("awq"), TOKEN, spans)

    async def _app(self, scope, receive, send):
        self.contexts.append(dict(scope["headers"])[b"traceparent"].decode())
        for message in self.said:
            if callable(message):
                message(self.engine)
            else:
                await send(message)

    async def ask(self, method="POST", path=CHAT):
        headers = [CONTEXT, ("x-quantile-internal", TOKEN)]
        return await Exchange(self.front, method, path, {"model": "m"}, headers)()

    @property
    def span(self):
        (span,) = self.exporter.get_finished_spans()
        return span


def dies(engine: StubEngine) -> None:
    engine.alive = False


HEAD = {"type": "http.response.start", "status": 200, "headers": []}
PIECE = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}


async def test_a_variants_span_is_the_routers_child_and_the_engines_parent():
    variant = TracedVariant(HEAD, {"type": "http.response.body", "body": b"{}"})
    await variant.ask()
    await variant.ask("GET", "/v1/models")
    span = variant.span
    assert span.name == "variant awq" and f"{span.parent.span_id:016x}" == PARENT
    assert variant.contexts[0].split("-")[1:3] == [TRACE, f"{span.context.span_id:016x}"]
    assert variant.contexts[1] == CONTEXT[1], "a probe is no request"
    assert span.attributes["quantile.method"] == "gptq"
    assert span.attributes["http.response.status_code"] == 200
    assert span.status.is_unset


async def test_a_variants_span_says_that_its_engine_died_on_the_request():
    variant = TracedVariant(dies, HEAD, PIECE)
    assert (await variant.ask()).status == 503
    told = variant.span.attributes
    assert (told["http.response.status_code"], told["error.type"]) == (503, "engine_dead")
    assert not variant.span.status.is_ok


async def test_a_variants_span_says_that_its_engine_died_in_the_middle():
    variant = TracedVariant(HEAD, PIECE, dies, PIECE)
    with pytest.raises(EngineError):
        await variant.ask()
    assert variant.span.attributes["error.type"] == "EngineError"
    assert not variant.span.status.is_ok


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4317"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4317",
            },
            "http://t:4317",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_opentelemetrys_own_variables_decide(environ, where):
    assert traces_endpoint(environ) == where
    if where is None:
        assert spans_of("quantile-router", environ) is None


BASE, FULL = "http://c:4318", "http://c:4318/v1/traces"
ALL, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
HTTP = "http/protobuf"


@pytest.mark.parametrize(
    ("environ", "protocol", "url"),
    [
        ({}, "grpc", None),
        ({ALL: "http://c:4317"}, "grpc", "http://c:4317"),
        ({ALL: BASE, "OTEL_EXPORTER_OTLP_PROTOCOL": HTTP}, HTTP, FULL),
        ({ALL: f"{BASE}/", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": HTTP}, HTTP, FULL),
        ({TRACES: "http://c/t", "OTEL_EXPORTER_OTLP_PROTOCOL": HTTP}, HTTP, "http://c/t"),
        ({ALL: BASE, TRACES: "http://c/t", "OTEL_EXPORTER_OTLP_PROTOCOL": HTTP}, HTTP, "http://c/t"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL": HTTP,
          ALL: BASE}, "grpc", BASE),
        ({ALL: BASE, "OTEL_EXPORTER_OTLP_PROTOCOL": HTTP, "OTEL_SDK_DISABLED": "true"}, HTTP, None),
    ],
)  # fmt: skip
def test_an_exporter_that_takes_an_address_as_it_is_gets_the_whole_one(environ, protocol, url):
    assert traces_protocol(environ) == protocol
    assert traces_url(environ) == url
