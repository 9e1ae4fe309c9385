"""What stands before an engine: who may ask, for what, and who answered."""

import json
from dataclasses import asdict

import pytest

from serve_app.domain.errors import DeadlineError, EngineError
from serve_app.serving.variant_front import VariantFront
from tests.fakes.asgi import Exchange
from tests.fakes.engine import StubEngine
from tests.fakes.relay import card_of

TOKEN = "0123456789abcdef"
KNOWN = ("x-quantile-internal", TOKEN)
EXPOSED = ["/v1/chat/completions", "/v1/models", "/tokenize", "/detokenize", "/health", "/metrics"]
NOT_EXPOSED = ["/", "/v1", "/V1/models", "//v1/models", "/health/", "/metrics/../sleep"]
NOT_EXPOSED += ["/docs", "/openapi.json", "/sleep", "/wake_up", "/server_info", "/collective_rpc"]


class Variant:
    """A front over an engine that answers `status`, and what reached that engine."""

    def __init__(self) -> None:
        self.status = 200
        self.reached: list[str] = []
        self.engine = StubEngine(self._app)
        self.front = VariantFront(self.engine, card_of("awq"), TOKEN)

    async def _app(self, scope, receive, send) -> None:
        self.reached.append(scope["type"] if scope["type"] != "http" else scope["path"])
        if scope["type"] != "http":
            return
        if self.status >= 500:
            self.engine.alive = False
        head = {"type": "http.response.start", "status": self.status}
        await send(head | {"headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"from the engine"})

    def ask(self, path: str, *headers: tuple[str, str], method: str = "POST", **scope) -> Exchange:
        return Exchange(self.front, method, path, b"{}", headers, **scope)


@pytest.fixture
def variant():
    return Variant()


@pytest.mark.parametrize("path", EXPOSED)
async def test_who_knows_the_token_reaches_the_engine_and_sees_who_answered(variant, path):
    exchange = await variant.ask(path, KNOWN)()
    assert (exchange.status, exchange.body) == (200, b"from the engine")
    assert exchange.headers == {"content-type": "text/plain", "x-variant": "awq"}
    assert variant.reached == [path]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("x-quantile-internal", ""),),
        (("x-quantile-internal", TOKEN[:-1]),),
        (("x-quantile-internal", TOKEN + "0"),),
        (("x-quantile-internal", TOKEN.upper()),),
        (("x-quantile-internal", "\xfc\xff"),),
        (("x-quantile-internal", "wrong"), KNOWN),
        (("authorization", f"Bearer {TOKEN}"),),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/quantile/card", "/nowhere"])
async def test_without_the_token_nobody_learns_which_paths_exist(variant, headers, path):
    exchange = await variant.ask(path, *headers)()
    assert exchange.status == 404
    assert exchange.json["error"]["code"] == "path_not_found"
    assert exchange.json["error"]["message"] == f"there is no {path} here; ask the router, at /v1"
    assert exchange.headers["x-variant"] == "awq"
    assert variant.reached == []


@pytest.mark.parametrize("path", NOT_EXPOSED)
async def test_operational_endpoints_are_not_there_even_with_the_token(variant, path):
    exchange = await variant.ask(path, KNOWN)()
    assert exchange.status == 404
    assert variant.reached == []


@pytest.mark.parametrize("path", ["/v1/models", "/quantile/card"])
async def test_the_applications_prefix_does_not_count(variant, path):
    prefix = "/variants/awq"
    exchange = await variant.ask(prefix + path, KNOWN, root_path=prefix)()
    assert exchange.status == 200
    exchange = await variant.ask(f"{prefix}/sleep", KNOWN, root_path=prefix)()
    assert exchange.status == 404


async def test_the_card_says_what_the_variant_is(variant):
    exchange = await variant.ask("/quantile/card", KNOWN, method="GET")()
    assert exchange.json == asdict(card_of("awq"))
    assert exchange.headers["x-variant"] == "awq"
    assert variant.reached == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/quantile/card", "/health"])
async def test_a_dead_engine_is_503_so_that_another_can_stand_in(variant, path):
    variant.engine.alive = False
    exchange = await variant.ask(path, KNOWN)()
    assert (exchange.status, exchange.json["error"]["code"]) == (503, "variant_unavailable")
    assert "awq" in exchange.json["error"]["message"]
    assert exchange.headers["x-variant"] == "awq"
    assert variant.reached == []

    assert exchange.headers["x-quantile-engine"] == "dead"


@pytest.mark.parametrize("status", [500, 503])
async def test_an_engine_that_dies_on_a_request_answers_503_and_says_so(variant, status):
    variant.status = status
    exchange = await variant.ask("/v1/completions", KNOWN)()
    assert (exchange.status, exchange.headers["x-quantile-engine"]) == (503, "dead")
    assert exchange.json["error"]["code"] == "variant_unavailable" and exchange.over


def stream_of(variant, *steps) -> Exchange:
    """A stream whose pieces are said one by one; a step that can be called is called."""

    async def app(scope, receive, send) -> None:
        head = {"type": "http.response.start", "status": 200}
        await send(head | {"headers": [(b"content-type", b"text/event-stream")]})
        for step in steps:
            if callable(step):
                step()
            else:
                await send({"type": "http.response.body", "body": step, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    variant.engine.app = app
    return variant.ask("/v1/completions", KNOWN)


def dies(variant) -> None:
    variant.engine.alive = False


async def test_a_stream_whose_engine_dies_before_its_first_byte_has_not_begun(variant):
    """vLLM has sent the head by then, and goes on with an error event."""
    exchange = await stream_of(variant, lambda: dies(variant), b'data: {"error": {}}\n\n')()
    assert (exchange.status, exchange.headers["x-quantile-engine"]) == (503, "dead")
    assert exchange.json["error"]["code"] == "variant_unavailable"


@pytest.mark.parametrize("head_first", [True, False])
async def test_an_engine_whose_death_is_an_exception_before_the_answer_is_503_too(
    variant, head_first
):
    async def fails(scope, receive, send) -> None:
        if head_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        dies(variant)
        raise EngineError("its process has ended")

    variant.engine.app = fails
    exchange = await variant.ask("/v1/completions", KNOWN)()
    assert (exchange.status, exchange.headers["x-quantile-engine"]) == (503, "dead")
    assert exchange.over


async def test_what_a_living_engine_raises_is_its_own(variant):
    async def fails(scope, receive, send) -> None:
        raise EngineError("no")

    variant.engine.app = fails
    with pytest.raises(EngineError):
        await variant.ask("/v1/completions", KNOWN)()


async def test_a_stream_that_has_begun_is_cut_when_its_engine_dies(variant):
    """vLLM would end it with an error event and `[DONE]`, as if it were whole."""
    error = b'data: {"error": {}}\n\n'
    steps = (b"data: 1\n\n", lambda: dies(variant), error, b"data: [DONE]\n\n")
    exchange = stream_of(variant, *steps)
    with pytest.raises(EngineError, match="the engine of awq died in the middle"):
        await exchange()
    assert (exchange.status, exchange.body, exchange.over) == (200, b"data: 1\n\n", False)
    assert "x-quantile-engine" not in exchange.headers


@pytest.mark.parametrize("status", [500, 503, 400, 429])
async def test_a_living_engines_errors_are_its_own(variant, status):
    async def fails(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"why"})

    variant.engine.app = fails
    exchange = await variant.ask("/v1/completions", KNOWN)()
    assert (exchange.status, exchange.body) == (status, b"why")
    assert exchange.headers["x-variant"] == "awq"
    assert "x-quantile-engine" not in exchange.headers


async def test_the_lifespan_is_the_engines_even_without_a_token(variant):
    await variant.front({"type": "lifespan"}, None, None)
    assert variant.reached == ["lifespan"]


class TestDeadline:
    """`x-request-timeout-ms`: the engine stops in time, and is not heard after that."""

    WITHIN = ("x-request-timeout-ms", "60")

    @pytest.fixture
    def variant(self, variant):
        variant.heard = []

        async def slow(scope, receive, send) -> None:
            """Streams what `said` says, then waits for its client to leave, then says null."""
            await receive()
            for message in variant.said:
                await send(message)
            if variant.ends:
                return
            variant.heard.append((await receive())["type"])
            if not variant.said:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"null"})

        variant.engine.app, variant.said, variant.ends = slow, [], False
        return variant

    def streams(self, variant, *pieces: bytes, kind: str = "text/event-stream") -> None:
        head = {"type": "http.response.start", "status": 200}
        variant.said = [head | {"headers": [(b"content-type", kind.encode())]}]
        variant.said += [
            {"type": "http.response.body", "body": piece, "more_body": True} for piece in pieces
        ]

    async def test_before_the_answer_it_is_504(self, variant):
        exchange = await variant.ask("/v1/completions", KNOWN, self.WITHIN)()
        assert (exchange.status, exchange.json["error"]["code"]) == (504, "deadline_exceeded")
        assert "0.06 s" in exchange.json["error"]["message"]
        assert exchange.headers["x-variant"] == "awq"
        assert variant.heard == ["http.disconnect"]

    async def test_a_head_alone_is_no_answer(self, variant):
        self.streams(variant)
        exchange = await variant.ask("/v1/completions", KNOWN, self.WITHIN)()
        assert (exchange.status, exchange.json["error"]["code"]) == (504, "deadline_exceeded")

    async def test_in_a_stream_it_is_an_error_event_after_the_last_whole_one(self, variant):
        self.streams(variant, b"data: 1\n\n", b"data: 2\n\ndata: {ha")
        exchange = await variant.ask("/v1/completions", KNOWN, self.WITHIN)()
        *whole, last, end = exchange.body.split(b"\n\n")
        assert whole == [b"data: 1", b"data: 2"] and end == b""
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
        assert exchange.over and variant.heard == ["http.disconnect"]

    async def test_any_other_answer_is_cut(self, variant):
        self.streams(variant, b'{"half": ', kind="application/json")
        exchange = variant.ask("/v1/completions", KNOWN, self.WITHIN)
        with pytest.raises(DeadlineError):
            await exchange()
        assert not exchange.over and variant.heard == ["http.disconnect"]

    async def test_who_is_in_time_is_not_touched(self, variant):
        self.streams(variant, b"data: 1\n\n", b"data: [DO", b"NE]\n\n")
        variant.said[-1]["more_body"] = False
        variant.ends = True
        exchange = await variant.ask("/v1/completions", KNOWN, self.WITHIN)()
        assert exchange.body == b"data: 1\n\ndata: [DONE]\n\n"
        assert variant.heard == []

    @pytest.mark.parametrize("asked", ["0", "-1", "1.5", "soon", "9" * 30, "\xb2", ""])
    async def test_what_is_no_time_is_the_callers_fault(self, variant, asked):
        header = ("x-request-timeout-ms", asked)
        exchange = await variant.ask("/v1/completions", KNOWN, header)()
        assert (exchange.status, exchange.json["error"]["code"]) == (400, "invalid_request")
        assert "whole number of milliseconds" in exchange.json["error"]["message"]
        assert exchange.headers["x-variant"] == "awq"
