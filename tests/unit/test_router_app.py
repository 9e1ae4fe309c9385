"""The router's application in process, over scripted ways to its variants."""

import asyncio
import json
from collections import Counter

import msgspec
import pytest

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.routing.split import assign
from serve_app.serving.passing import AnswerCutError
from serve_app.serving.router_app import RouterApp
from serve_app.serving.status import STATUS_AGE_S
from serve_app.serving.upstream import UpstreamTruncatedError
from tests.fakes.asgi import Exchange
from tests.fakes.metrics import recording_meters
from tests.fakes.relay import (
    FakeAnswer,
    FakeApplications,
    FakeRelay,
    FakeSleepers,
    application,
    busy,
    card_of,
)

CHAT = "/v1/chat/completions"
SPLIT = RouterUserConfig(
    split={"a": 5000, "b": 3000, "c": 2000, "pin-only": 0}, fallback=("b", "c", "a")
)
SSE = (("content-type", "text/event-stream; charset=utf-8"),)
LIMIT = 1_000_000


def session_of(variant: str) -> tuple[str, str]:
    """A header whose session the split gives to this variant."""
    keys = map(str, range(1000))
    return "x-session-id", next(key for key in keys if assign(key, SPLIT.split) == variant)


class Router:
    """The application, its variants' script and what it counted."""

    def __init__(self) -> None:
        self.relay = FakeRelay("a", "b", "c", "pin-only")
        meters = recording_meters()
        self.metrics = meters.router
        self.sleepers = FakeSleepers()
        self.applications = FakeApplications()
        args = RouterArgs(
            model="m", max_body_bytes=LIMIT, probe_interval_s=0.001, wake_timeout_s=0.05
        )
        self.app = RouterApp(args, self.relay, meters, self.applications, self.sleepers)

    def ask(self, *args, **more) -> Exchange:
        return Exchange(self.app, *args, **more)

    def chat(self, *headers, model="m", path=CHAT, **body) -> Exchange:
        return self.ask("POST", path, {"model": model, **body}, headers)

    async def probed(self) -> None:
        """Let every variant be probed anew."""
        await asyncio.sleep(0.03)


@pytest.fixture
async def router():
    router = Router()
    router.app.configure(SPLIT)
    yield router
    router.app.close()
    await asyncio.sleep(0)
    assert router.relay.is_closed
    assert router.relay.leftovers() == []


def refused(exchange: Exchange, status: int, code: str, *said: str) -> None:
    """The answer is an OpenAI-shaped error of this kind, and says so."""
    assert (exchange.status, exchange.json["error"]["code"]) == (status, code)
    assert set(exchange.json["error"]) == {"message", "type", "param", "code"}
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert exchange.json["error"]["type"] == kind
    for part in said:
        assert part in exchange.json["error"]["message"]
    assert exchange.headers["content-type"] == "application/json"
    assert exchange.headers["x-variant"] == "none"
    assert ("retry-after" in exchange.headers) is (status == 503)


class TestRouting:
    """Which variant is asked, and what the caller is told of it."""

    @pytest.mark.parametrize("variant", ["a", "b", "c"])
    async def test_a_session_goes_to_its_variant_and_the_answer_says_so(self, router, variant):
        header = session_of(variant)
        for _ in range(3):
            exchange = await router.chat(header)()
            assert exchange.status == 200
            assert exchange.json == {"ok": True}
            assert exchange.route == (variant, "sticky")
        assert router.relay.asked == [variant] * 3
        assert router.metrics.answers == [(variant, "sticky", 200)] * 3

    async def test_the_bodys_user_is_a_session_and_the_header_wins(self, router):
        user = session_of("c")[1]
        assert (await router.chat(user=user)()).route == ("c", "sticky")
        assert (await router.chat(session_of("a"), user=user)()).route == ("a", "sticky")
        assert (await router.chat(user=None)()).route[1] == "weighted"

    async def test_without_a_session_requests_spread(self, router):
        seen = Counter([(await router.chat()()).route for _ in range(200)])
        assert set(seen) == {(name, "weighted") for name in ("a", "b", "c")}

    async def test_one_request_id_asked_again_goes_the_same_way(self, router):
        routes = {(await router.chat(("x-request-id", "r-1"))()).route for _ in range(5)}
        assert len(routes) == 1

    @pytest.mark.parametrize("variant", ["a", "pin-only"])
    async def test_a_pin_is_obeyed_whatever_the_session(self, router, variant):
        exchange = await router.chat(session_of("b"), model=f"m@{variant}")()
        assert exchange.route == (variant, "pinned")

    @pytest.mark.parametrize(
        "path", ["/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize"]
    )
    async def test_every_relayed_path_is_routed_with_its_body_unchanged(self, router, path):
        body = b'{ "model" :"m","input":[ 1.50, "\\u00e9 \xc3\xa9" ] , "x": {"model": "y"}}'
        exchange = await router.ask("POST", path, body)()
        assert exchange.status == 200
        assert router.relay.requests[0][0]["path"] == path
        assert router.relay.requests[0][1] == body

    async def test_the_variants_own_errors_are_passed_on_with_their_headers(self, router):
        headers = (("content-type", "application/json"), ("retry-after", "7"), ("x-variant", "z"))
        router.relay.scripts["a"] = lambda: FakeAnswer(b'{"e": 1}', status=429, headers=headers)
        exchange = await router.chat(session_of("a"))()
        assert (exchange.status, exchange.json) == (429, {"e": 1})
        assert exchange.headers["retry-after"] == "7"
        assert exchange.route == ("a", "sticky")
        assert router.metrics.answers == [("a", "sticky", 429)]
        assert router.metrics.fallbacks == []

    async def test_a_new_split_counts_from_the_next_request_on(self, router):
        go_on = asyncio.Event()
        router.relay.scripts["a"] = lambda: FakeAnswer(b"1\n\n", go_on, b"2\n\n", headers=SSE)
        running = router.chat(session_of("a"))
        task = running.start()
        await running.sent(2)
        router.app.configure(RouterUserConfig(split={"new": 10_000}))
        assert (await router.chat(session_of("a"))()).route == ("new", "sticky")
        refused(await router.chat(model="m@a")(), 404, "model_not_found", "m, m@new")
        go_on.set()
        await task
        assert (running.body, running.over) == (b"1\n\n2\n\n", True)


class TestFallback:
    """Before the first byte another variant may stand in; after it, never."""

    async def test_the_next_in_the_declared_order_stands_in_and_it_is_counted(self, router):
        router.relay.scripts["a"] = router.relay.scripts["b"] = busy()
        exchange = await router.chat(session_of("a"))()
        assert exchange.status == 200
        assert exchange.route == ("c", "fallback")
        assert router.relay.asked == ["a", "b", "c"]
        assert router.metrics.fallbacks == ["a", "b"]
        assert router.metrics.answers == [("c", "fallback", 200)]

    async def test_none_left_says_what_each_of_them_said(self, router):
        for name in ("a", "b", "c"):
            router.relay.scripts[name] = busy(f"reason of {name}")
        exchange = await router.chat(session_of("a"))()
        said = [f"{name}: reason of {name}" for name in ("a", "b", "c")]
        refused(exchange, 503, "variant_unavailable", *said)
        assert exchange.route == ("none", "rejected")
        assert router.metrics.answers == [("none", "rejected", 503)]

    async def test_a_pinned_request_asks_nobody_else(self, router):
        router.relay.scripts["a"] = busy()
        refused(await router.chat(model="m@a")(), 503, "variant_unavailable", "a: it answered 503")
        assert router.relay.asked == ["a"]

    async def test_a_variant_known_to_be_down_is_not_asked_until_it_is_back(self, router):
        del router.relay.cards["a"]
        await router.probed()
        assert (await router.chat(session_of("a"))()).route == ("b", "fallback")
        refused(await router.chat(model="m@a")(), 503, "variant_unavailable", "without a pin")
        assert router.relay.asked == ["b"]
        router.relay.cards["a"] = card_of("a")
        await router.probed()
        assert (await router.chat(session_of("a"))()).route == ("a", "sticky")

    async def test_all_known_to_be_down(self, router):
        router.relay.cards.clear()
        await router.probed()
        refused(await router.chat()(), 503, "variant_unavailable", "no variant can take")
        assert router.relay.asked == []

    async def test_a_stream_that_breaks_off_ends_in_an_error_event_and_nobody_stands_in(
        self, router
    ):
        first = b'data: {"id": 1}\n\n'
        router.relay.scripts["a"] = lambda: FakeAnswer(
            first, UpstreamTruncatedError("gone"), headers=SSE
        )
        exchange = await router.chat(session_of("a"))()
        assert exchange.over
        assert exchange.body.startswith(first)
        event = exchange.body.removeprefix(first)
        assert event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2
        error = json.loads(event.removeprefix(b"data: "))["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "stream_broken" and "'a'" in error["message"]
        assert router.relay.asked == ["a"]
        assert (router.metrics.broken, router.metrics.fallbacks) == (["a"], [])
        assert router.metrics.answers == [("a", "sticky", 200)]

    async def test_another_answer_that_breaks_off_is_cut_so_that_the_caller_notices(self, router):
        cut = UpstreamTruncatedError("gone")
        router.relay.scripts["a"] = lambda: FakeAnswer(b'{"half": ', cut)
        exchange = router.chat(session_of("a"))
        with pytest.raises(AnswerCutError):
            await exchange()
        assert not exchange.over
        assert router.relay.asked == ["a"]
        assert router.metrics.broken == ["a"]
        assert router.metrics.answers == [("a", "sticky", 200)]


class TestClientGone:
    """A client that leaves frees its variant, and is not the variant's fault."""

    async def test_in_the_middle_of_the_answer(self, router):
        router.relay.scripts["a"] = lambda: FakeAnswer(b"1\n\n", asyncio.Event(), headers=SSE)
        exchange = router.chat(session_of("a"))
        task = exchange.start()
        await exchange.sent(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert router.relay.answers[-1].ended == ["closed"]
        assert router.metrics.broken == []
        assert router.metrics.answers == [("a", "sticky", 200)]

    async def test_noticed_by_sending(self, router):
        class Gone(Exchange):
            async def send(self, message):
                await super().send(message)
                if len(self.messages) == 2:
                    raise OSError("the client is gone")

        router.relay.scripts["a"] = lambda: FakeAnswer(b"1\n\n", b"2\n\n", b"3\n\n", headers=SSE)
        exchange = Gone(router.app, "POST", CHAT, {"model": "m"}, [session_of("a")])
        with pytest.raises(OSError, match="gone"):
            await exchange()
        assert router.relay.answers[-1].ended == ["closed"]
        assert router.metrics.broken == []

    async def test_before_its_body_was_whole(self, router):
        exchange = router.ask("POST", CHAT, pieces=[b'{"model": '], hangs_up_in_body=True)
        await exchange()
        assert exchange.messages == []
        assert router.relay.asked == []


class TestRefusals:
    """What the router answers by itself, always in OpenAI's shape."""

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"m"',
            b"{}",
            b'{"model": null}',
            b'{"model": 1}',
            b'{"model": ["m"]}',
            b'{"model": "m", "user": 7}',
            b'{"model": "m"} {}',
            b'{"model": "\xff"}',
            b'{"x": ' + b"[" * 900_000,
            b'{"model": "\\ud800"}',
            b"model=m",
        ],
    )
    async def test_a_body_that_names_no_model(self, router, body):
        refused(await router.ask("POST", CHAT, body)(), 400, "invalid_request", '{"model": "..."}')
        assert router.relay.asked == []

    @pytest.mark.parametrize("model", ["gpt-4", "m@z", "m@", "", "m" * 500])
    async def test_a_model_that_is_not_served(self, router, model):
        said = "m, m@a, m@b, m@c, m@pin-only"
        refused(await router.chat(model=model)(), 404, "model_not_found", said)

    @pytest.mark.parametrize(
        "path",
        ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/metrics", "/variants/a/v1/models"],
    )
    async def test_a_path_that_is_not_served(self, router, path):
        exchange = await router.ask("POST", path, {"model": "m"})()
        refused(exchange, 404, "path_not_found", repr(path), CHAT, "/readyz")
        assert exchange.route == ("none", "rejected")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", CHAT, "POST"),
            ("OPTIONS", CHAT, "POST"),
            ("POST", "/v1/models", "GET"),
            ("DELETE", "/v1/models/m", "GET"),
        ],
    )
    async def test_another_method(self, router, method, path, allowed):
        exchange = await router.ask(method, path)()
        refused(exchange, 405, "method_not_allowed", f"{path!r} takes {allowed}, not {method!r}")

    async def test_a_body_that_is_declared_too_long(self, router):
        body = b"x" * (LIMIT + 1)
        headers = [("content-length", str(len(body)))]
        exchange = await router.ask("POST", CHAT, body, headers)()
        refused(
            exchange,
            413,
            "body_too_large",
            f"{LIMIT + 1} bytes",
            f"takes {LIMIT}",
            "max_body_bytes",
        )

    async def test_a_chunked_body_that_grows_too_long(self, router):
        exchange = await router.ask("POST", CHAT, pieces=[b"x" * (LIMIT // 2)] * 3)()
        refused(exchange, 413, "body_too_large", f"more than {LIMIT}", f"takes {LIMIT}")
        assert exchange.n_received == 3  # taken in, so that the client hears the answer

    async def test_a_body_without_an_end_is_not_taken_in_for_ever(self, router):
        exchange = await router.ask("POST", CHAT, pieces=[b"x" * LIMIT] * 100)()
        refused(exchange, 413, "body_too_large")
        assert exchange.n_received_at_answer < 12

    @pytest.mark.parametrize("declared", ["-5", "1e9", "\xb2", ""])
    async def test_a_length_that_is_no_number_is_not_believed(self, router, declared):
        pieces = [b'{"model"', b': "m"}']
        headers = [("content-length", declared)]
        exchange = await router.ask("POST", CHAT, headers=headers, pieces=pieces)()
        assert exchange.status == 200

    async def test_a_body_of_exactly_the_limit_is_taken(self, router):
        body = b'{"model": "m"}'.ljust(LIMIT)
        headers = [("content-length", str(len(body)))]
        assert (await router.ask("POST", CHAT, body, headers)()).status == 200

    async def test_every_refusal_is_counted(self, router):
        await router.ask("POST", "/nowhere")()
        await router.chat(model="x")()
        assert router.metrics.answers == [("none", "rejected", 404)] * 2

    async def test_a_fault_of_our_own_is_openai_shaped_and_tells_nothing(self, router):
        def fail():
            raise KeyError("a secret of the router")

        for variant in "abc":
            router.relay.scripts[variant] = fail
        exchange = await router.chat()()
        refused(exchange, 500, "server_error", "its log says why")
        assert "secret" not in exchange.json["error"]["message"]

    async def test_before_there_is_a_split(self):
        router = Router()
        for path in (CHAT, "/readyz", "/v1/models"):
            method = "POST" if path == CHAT else "GET"
            exchange = await router.ask(method, path, {"model": "m"})()
            refused(exchange, 503, "variant_unavailable", "still starting")
        assert (await router.ask("GET", "/healthz")()).status == 200


class TestOwnAnswers:
    """/v1/models, /readyz and /healthz."""

    async def test_models_lists_the_alias_and_every_pin(self, router):
        await router.probed()
        exchange = await router.ask("GET", "/v1/models")()
        assert exchange.status == 200
        assert exchange.route == ("none", "local")
        assert exchange.json["object"] == "list"
        models = {model["id"]: model for model in exchange.json["data"]}
        assert list(models) == ["m", "m@a", "m@b", "m@c", "m@pin-only"]
        assert {model["object"] for model in models.values()} == {"model"}
        assert models["m"]["shares_bp"] == SPLIT.split
        assert models["m@b"] == {
            "id": "m@b",
            "object": "model",
            "created": 0,
            "owned_by": "quantile",
            "root": "m",
            "variant": "b",
            "share_bp": 3000,
            "ready": True,
            "asleep": False,
            "method": "gptq",
            "scheme": "gptq W4A16 g128",
            "bits": 4,
            "weight_bytes": 1000,
            "max_model_len": 2048,
            "engine": "fake",
        }

    async def test_one_model_is_found_by_its_name(self, router):
        await router.probed()
        everything = (await router.ask("GET", "/v1/models")()).json["data"]
        for model in everything:
            assert (await router.ask("GET", f"/v1/models/{model['id']}")()).json == model
        refused(await router.ask("GET", "/v1/models/m@z")(), 404, "model_not_found", "'m@z'")

    async def test_a_variant_that_was_never_ready_shows_gaps_and_not_zeros(self, router):
        router.relay.cards["b"] = card_of("b", context_length=512)
        router.app.configure(RouterUserConfig(split={"b": 5000, "new": 5000}))
        await router.probed()
        listed = (await router.ask("GET", "/v1/models")()).json["data"]
        models = {model["id"]: model for model in listed}
        assert models["m@new"]["ready"] is False
        for fact in ("method", "scheme", "bits", "weight_bytes", "max_model_len", "engine"):
            assert models["m@new"][fact] is None
        assert models["m"]["max_model_len"] == 512  # what every variant can take

    async def test_nothing_known_yet(self, router):
        router.app.configure(RouterUserConfig(split={"new": 10_000}))
        alias = (await router.ask("GET", "/v1/models/m")()).json
        assert alias["max_model_len"] is None

    async def test_ready_means_every_variant_with_a_share(self, router):
        router.app.configure(RouterUserConfig(split={"a": 5000, "n1": 2500, "n2": 2500, "n3": 0}))
        exchange = await router.ask("GET", "/readyz")()
        refused(exchange, 503, "variant_unavailable", "n1, n2")  # not probed yet
        router.relay.cards["n1"] = card_of("n1")
        await router.probed()
        exchange = await router.ask("GET", "/readyz")()
        refused(exchange, 503, "variant_unavailable", "not ready yet: n2")
        assert exchange.route == ("none", "local")
        router.relay.cards["n2"] = card_of("n2")
        await router.probed()
        assert (await router.ask("GET", "/readyz")()).status == 200
        assert router.metrics.answers == []  # probes are not traffic

    async def test_alive_needs_no_variant(self, router):
        router.relay.cards.clear()
        await router.probed()
        exchange = await router.ask("GET", "/healthz")()
        assert (exchange.status, exchange.route) == (200, ("none", "local"))

    @pytest.mark.parametrize(
        "answer",
        [
            lambda: FakeAnswer(b'{"detail": "Not Found"}', status=404),
            lambda: FakeAnswer(b'{"name": "a"}'),
            lambda: FakeAnswer(msgspec.json.encode(card_of("a")), status=500),
            lambda: FakeAnswer(b"<html>\xff</html>"),
            lambda: FakeAnswer(b'{"name": "\xff"}'),
            lambda: FakeAnswer(b'{"na', UpstreamTruncatedError("gone")),
        ],
    )
    async def test_a_card_that_cannot_be_read_is_not_ready_and_asked_for_again(
        self, router, answer
    ):
        """Another application behind the variant's path, or another version of ours."""
        await router.probed()
        router.relay.cards["a"] = answer
        await router.probed()
        assert (await router.ask("GET", "/readyz")()).status == 503
        router.relay.cards["a"] = card_of("a")
        await router.probed()
        assert (await router.ask("GET", "/readyz")()).status == 200

    async def test_a_variant_that_comes_back_to_the_split_is_not_down_from_before(self, router):
        del router.relay.cards["a"]
        await router.probed()
        router.app.configure(RouterUserConfig(split={"b": 10_000}))
        router.app.configure(SPLIT)
        assert (await router.chat(session_of("a"))()).route == ("a", "sticky")

    async def test_a_variant_that_leaves_the_split_is_probed_no_more(self, router):
        await router.probed()
        router.app.configure(RouterUserConfig(split={"a": 10_000}))
        await router.probed()
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert [name for name in names if name.startswith("probe")] == ["probe a"]


async def test_lifespan_is_answered():
    router, sent = Router(), []
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    await router.app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


class TestStatus:
    """/status: replicas by Serve's word, facts by the engine's."""

    async def test_each_variant_of_the_split_with_its_replicas_and_facts(self, router):
        router.relay.cards["a"] = card_of("a", facts={"engine": "vllm 1", "kernel.o_proj": "K"})
        router.applications.applications = {
            "router": application("HEALTHY", RUNNING=2),
            "a": application("UPSCALING", RUNNING=1, STARTING=1),
            "b": application("HEALTHY", RUNNING=3),
        }
        await router.probed()
        exchange = await router.ask("GET", "/status")()
        assert (exchange.status, exchange.route) == (200, ("none", "local"))
        assert exchange.json["model"] == "m"
        variants = exchange.json["variants"]
        assert list(variants) == ["a", "b", "c", "pin-only"]
        assert variants["a"] == {
            "ready": True,
            "asleep": False,
            "share_bp": 5000,
            "replicas": {"running": 1, "target": 2},
            "facts": {"engine": "vllm 1", "kernel.o_proj": "K"},
        }
        assert variants["b"]["replicas"] == {"running": 3, "target": 3}
        assert variants["c"]["replicas"] is None  # Serve knows of no such application
        assert router.applications.ages == [STATUS_AGE_S]

    async def test_what_is_not_known_is_null(self, router):
        router.applications.applications = None
        router.app.configure(RouterUserConfig(split={"new": 10_000}))
        status = (await router.ask("GET", "/status")()).json["variants"]["new"]
        assert (status["ready"], status["replicas"], status["facts"]) == (False, None, None)

    async def test_a_variant_without_a_replica_on_purpose_is_asleep(self, router):
        router.sleepers.asleep = frozenset({"a"})
        router.applications.applications = {"a": application("HEALTHY")}
        router.app.configure(SPLIT.model_copy(update={"sleepers": ("a",)}))
        await router.probed()
        status = (await router.ask("GET", "/status")()).json["variants"]["a"]
        assert (status["ready"], status["asleep"]) == (False, True)
        assert status["replicas"] == {"running": 0, "target": 0}

    async def test_it_is_only_read(self, router):
        refused(await router.ask("POST", "/status")(), 405, "method_not_allowed", "GET")
        assert router.applications.ages == []


class TestSleepers:
    """Variants without a replica on purpose: asked all the same, for a bounded time."""

    @pytest.fixture
    async def router(self, router):
        router.sleepers.asleep = frozenset("a")
        router.app.configure(SPLIT.model_copy(update={"sleepers": ("a",)}))
        await router.probed()
        return router

    def wakes_after(self, router, delay_s: float) -> None:
        ask = router.relay.ask

        async def late(variant, scope, body, timeout_s=None):
            if variant == "a":
                await asyncio.sleep(delay_s)
            return await ask(variant, scope, body)

        router.relay.ask = late

    async def test_its_request_wakes_it_and_is_answered_by_it(self, router):
        self.wakes_after(router, 0.02)
        exchange = await router.chat(session_of("a"))()
        assert (exchange.status, exchange.headers["x-variant"]) == (200, "a")
        assert exchange.headers["x-route-reason"] == "sticky"

    async def test_one_that_does_not_wake_in_time_is_stood_in_for(self, router):
        self.wakes_after(router, 1.0)
        exchange = await router.chat(session_of("a"))()
        assert (exchange.status, exchange.headers["x-variant"]) == (200, "b")
        assert exchange.headers["x-route-reason"] == "fallback"

    async def test_a_pin_on_one_that_does_not_wake_in_time_is_refused(self, router):
        self.wakes_after(router, 1.0)
        refused(await router.chat(model="m@a")(), 503, "variant_unavailable", "and none after")

    async def test_it_is_listed_as_asleep_and_holds_readiness_up_no_more(self, router):
        models = {
            each["id"]: each for each in (await router.ask("GET", "/v1/models")()).json["data"]
        }
        assert (models["m@a"]["ready"], models["m@a"]["asleep"]) == (False, True)
        assert (models["m@b"]["ready"], models["m@b"]["asleep"]) == (True, False)
        assert (await router.ask("GET", "/readyz")()).status == 200

    async def test_awake_nothing_limits_how_long_it_takes(self, router):
        router.sleepers.asleep = frozenset()
        await router.probed()
        self.wakes_after(router, 0.2)
        assert (await router.chat(session_of("a"))()).headers["x-variant"] == "a"
