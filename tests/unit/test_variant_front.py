"""What stands before an engine: who may ask, for what, and who answered."""

from dataclasses import asdict

import pytest

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


async def test_an_engine_that_dies_on_a_request_answers_503_and_not_500(variant):
    variant.status = 500
    assert (await variant.ask("/v1/completions", KNOWN)()).status == 503


@pytest.mark.parametrize("status", [500, 400, 429])
async def test_a_living_engines_errors_are_its_own(variant, status):
    async def fails(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"why"})

    variant.engine.app = fails
    exchange = await variant.ask("/v1/completions", KNOWN)()
    assert (exchange.status, exchange.body) == (status, b"why")
    assert exchange.headers["x-variant"] == "awq"


async def test_the_lifespan_is_the_engines_even_without_a_token(variant):
    await variant.front({"type": "lifespan"}, None, None)
    assert variant.reached == ["lifespan"]
