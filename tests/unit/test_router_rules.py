"""Cohorts, aliases, ladder, shadow and keys through the router's application."""

import asyncio
from collections import Counter

import pytest
import yaml

from serve_app.config.admission import KEYS_FILE_VARIABLE
from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.config.tenants import digest_of
from serve_app.domain.errors import ConfigError
from serve_app.serving.router_app import RouterApp
from serve_app.serving.upstream import UpstreamTruncatedError
from tests.fakes.asgi import Exchange
from tests.fakes.metrics import recording_meters
from tests.fakes.relay import FakeAnswer, FakeApplications, FakeRelay, FakeSleepers, busy

CHAT = "/v1/chat/completions"
EVENTS = (("content-type", "text/event-stream"),)
LADDER = {
    "rungs": ["a", "b", "c"],
    "max_in_flight": {"a": 1, "b": 1},
    "ttft_p95_ms": 1000,
}
USAGE = b'{"usage":{"prompt_tokens":30,"completion_tokens":12,"total_tokens":42}}'
STREAM = (b'data: {"choices":[]}\n\n', b"data: " + USAGE + b"\n\n", b"data: [DONE]\n\n")


class Router:
    """Three variants and a candidate behind the application."""

    def __init__(self) -> None:
        self.relay = FakeRelay("a", "b", "c", "new")
        self.meters = recording_meters()
        args = RouterArgs(model="m", probe_interval_s=0.001)
        self.app = RouterApp(args, self.relay, self.meters, FakeApplications(), FakeSleepers())

    def configure(self, **changes) -> None:
        split = {"a": 10_000, "b": 0, "c": 0, "new": 0}
        self.app.configure(RouterUserConfig.model_validate({"split": split} | changes))

    async def chat(self, *headers, model="m", path=CHAT, **body):
        return await Exchange(self.app, "POST", path, {"model": model, **body}, headers)()

    async def status(self):
        return (await Exchange(self.app, "GET", "/status")()).json


@pytest.fixture
async def router(monkeypatch):
    monkeypatch.delenv(KEYS_FILE_VARIABLE, raising=False)
    router = Router()
    yield router
    router.app.close()
    await asyncio.sleep(0)
    assert router.relay.leftovers() == []


class Held:
    """Answers of a variant that wait until they are let go."""

    def __init__(self, router: Router, variant: str) -> None:
        self.go_on = asyncio.Event()
        router.relay.scripts[variant] = lambda: FakeAnswer(self.go_on, b"{}")


async def until(what) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to be")


async def test_each_alias_has_its_own_split_and_its_own_pins(router):
    router.configure(aliases={"fast": {"split": {"c": 10_000}, "fallback": ["c"]}})
    assert (await router.chat(model="m")).route == ("a", "weighted")
    assert (await router.chat(model="fast")).route == ("c", "weighted")
    assert (await router.chat(model="fast@c")).route == ("c", "pinned")
    assert (await router.chat(model="fast@a")).status == 404
    models = (await Exchange(router.app, "GET", "/v1/models")()).json["data"]
    assert [model["id"] for model in models] == [
        *("m", "m@a", "m@b", "m@c", "m@new"),
        *("fast", "fast@c"),
    ]
    assert list((await router.status())["aliases"]) == ["m", "fast"]


async def test_an_alias_that_is_gone_is_not_served_any_more(router):
    router.configure(aliases={"fast": {"split": {"c": 10_000}}})
    router.configure()
    assert (await router.chat(model="fast")).status == 404
    assert list((await router.status())["aliases"]) == ["m"]


@pytest.mark.parametrize(
    ("model", "rules", "expected"),
    [
        ("fast", {}, (404, "model_not_found")),
        ("m@c", {"split": {"a": 10_000, "new": 0}}, (404, "model_not_found")),
        ("m", {"split": {"a": 0, "b": 10_000}}, (200, ("b", "weighted"))),
    ],
)
async def test_a_request_that_waited_for_a_place_is_answered_by_the_rules_of_its_turn(
    router, model, rules, expected
):
    one_at_a_time = {"max_in_flight": 1, "max_wait_s": 5}
    router.configure(admission=one_at_a_time, aliases={"fast": {"split": {"c": 10_000}}})
    held = Held(router, "a")
    first = asyncio.ensure_future(router.chat())
    await until(lambda: router.relay.asked == ["a"])
    waiting = asyncio.ensure_future(router.chat(model=model))
    await until(lambda: router.app._path.view()["router"]["waiting"] == 1)
    router.configure(admission=one_at_a_time, **rules)
    held.go_on.set()
    answer = await waiting
    told = answer.route if answer.status == 200 else answer.json["error"]["code"]
    assert (answer.status, told) == expected
    assert (await first).status == 200
    standing = router.app._path.view()["router"]
    assert (standing["in_flight"], standing["waiting"]) == (0, 0)


async def test_a_cohort_is_routed_by_its_header(router):
    router.configure(
        cohorts=[{"name": "trial", "headers": {"X-Tier": ["trial"]}, "split": {"c": 10_000}}]
    )
    assert (await router.chat(("x-tier", "trial"))).route == ("c", "cohort")
    assert (await router.chat(("x-tier", "gold"))).route == ("a", "weighted")


async def test_the_ladder_takes_what_the_best_variant_has_no_room_for(router):
    router.configure(ladder=LADDER)
    held = Held(router, "a")
    first = asyncio.ensure_future(router.chat())
    await until(lambda: router.relay.asked == ["a"])
    assert (await router.chat()).route == ("b", "ladder")
    view = (await router.status())["aliases"]["m"]["ladder"]
    assert view["rungs"]["a"] | {"in_flight": 1, "limit": 1, "at_limit": True} == view["rungs"]["a"]
    held.go_on.set()
    assert (await first).route == ("a", "weighted")
    assert (await router.chat()).route == ("a", "weighted")


async def test_a_pinned_request_takes_up_room_on_its_rung_too(router):
    router.configure(ladder=LADDER)
    held = Held(router, "a")
    pinned = asyncio.ensure_future(router.chat(model="m@a"))
    await until(lambda: router.relay.asked == ["a"])
    assert (await router.chat()).route == ("b", "ladder")
    held.go_on.set()
    await pinned


async def test_a_cohort_is_not_moved_below_its_floor(router):
    gold = {"name": "gold", "headers": {"x-tier": ["gold"]}, "floor": "b"}
    router.configure(ladder=LADDER, cohorts=[gold])
    held = [Held(router, name) for name in "ab"]
    both = [asyncio.ensure_future(router.chat(model=f"m@{name}")) for name in "ab"]
    await until(lambda: sorted(router.relay.asked) == ["a", "b"])
    assert (await router.chat()).route == ("c", "ladder")
    golden = asyncio.ensure_future(router.chat(("x-tier", "gold")))
    await until(lambda: len(router.relay.asked) == 4)
    assert router.relay.asked[-1] == "b"
    for each in held:
        each.go_on.set()
    assert (await golden).route == ("b", "ladder")
    await asyncio.gather(*both)


async def test_room_is_given_back_whatever_becomes_of_a_request(router):
    router.configure(ladder=LADDER)
    held = Held(router, "a")
    leaving = Exchange(router.app, "POST", CHAT, {"model": "m"})
    task = leaving.start()
    await until(lambda: router.relay.asked == ["a"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    held.go_on.set()
    router.relay.scripts.pop("a")
    assert [(await router.chat()).route[0] for _ in range(3)] == ["a"] * 3


async def test_a_share_is_mirrored_to_the_candidate_and_the_client_sees_its_primary(router):
    router.configure(shadow={"variant": "new", "share_bp": 10_000})
    answer = b'{"choices":[{"index":0,"message":{"content":"Paris"},"finish_reason":"stop"}]}'
    for name in ("a", "new"):
        router.relay.scripts[name] = lambda: FakeAnswer(answer)
    exchange = await router.chat(temperature=0, messages=[])
    assert exchange.route == ("a", "weighted") and "Paris" in exchange.body.decode()
    await until(lambda: router.meters.shadow.mirrored)
    assert router.relay.asked == ["a", "new"]
    assert (await router.status())["aliases"]["m"]["shadow"]["variant"] == "new"
    router.configure()
    await router.chat(temperature=0, messages=[])
    assert router.relay.asked == ["a", "new", "a"]


async def test_what_a_key_keeps_from_the_candidate_is_not_mirrored(router, keys):
    router.configure(
        admission=keys,
        shadow={"variant": "new", "share_bp": 10_000},
        cohorts=[{"name": "gold", "split": {"a": 10_000}}],
    )
    for key in ("qtl-narrow", "qtl-acme"):
        await router.chat(bearer(key), temperature=0, messages=[])
    await until(lambda: "new" in router.relay.asked)
    assert sorted(router.relay.asked) == ["a", "c", "new"]


@pytest.fixture
def keys(tmp_path):
    def entry(key, **more):
        return {"keys": [{"sha256": digest_of(key)}], **more}

    path = tmp_path / "keys.yaml"
    tenants = {
        "acme": entry("qtl-acme", cohort="gold", requests_per_minute=60, burst=2),
        "narrow": entry("qtl-narrow", variants=["c"], models=["m"]),
    }
    path.write_text(yaml.safe_dump({"tenants": tenants}))
    return {"keys_file": str(path)}


def bearer(key):
    return "authorization", f"Bearer {key}"


async def test_without_a_good_key_nothing_is_asked(router, keys):
    router.configure(admission=keys)
    for header in ((), (bearer("qtl-wrong"),)):
        refused = await router.chat(*header)
        assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
    assert router.relay.asked == []


async def test_a_key_belongs_to_its_cohort_and_has_its_rate(router, keys):
    cohorts = [{"name": "gold", "split": {"b": 10_000}}]
    router.configure(admission=keys, cohorts=cohorts)
    router.relay.scripts["b"] = lambda: FakeAnswer(USAGE)
    answers = [await router.chat(bearer("qtl-acme")) for _ in range(3)]
    assert [each.status for each in answers] == [200, 200, 429]
    assert answers[0].route == ("b", "cohort")
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert int(answers[2].headers["retry-after"]) >= 1
    assert router.relay.asked == ["b", "b"]


async def test_a_key_may_be_bound_to_variants_and_models(router, keys):
    router.configure(admission=keys, aliases={"fast": {"split": {"c": 10_000}}})
    key = bearer("qtl-narrow")
    assert (await router.chat(key)).route == ("c", "weighted")
    assert (await router.chat(key, model="m@c")).route == ("c", "pinned")
    assert (await router.chat(key, model="m@a")).status == 403
    assert (await router.chat(key, model="fast")).status == 403
    assert Counter(router.relay.asked) == {"c": 2}


async def test_a_configuration_that_cannot_be_kept_changes_nothing(router, keys, tmp_path):
    router.configure(admission=keys)
    with pytest.raises(ConfigError):
        router.configure(admission={"keys_file": str(tmp_path / "none.yaml")})
    assert (await router.chat()).status == 401
    assert (await router.chat(bearer("qtl-narrow"))).status == 200


async def test_latencies_and_tokens_are_observed(router):
    router.configure()
    router.relay.scripts["a"] = lambda: FakeAnswer(USAGE)
    router.relay.scripts["b"] = lambda: FakeAnswer(*STREAM, headers=EVENTS)
    await router.chat()
    await router.chat(model="m@b", stream=True)
    whole, streamed = router.meters.router.seen
    assert (whole.variant, whole.status, whole.whole) == ("a", 200, True)
    assert (whole.prompt_tokens, whole.completion_tokens) == (30, 12)
    assert (whole.ttft_s, whole.tpot_s) == (None, None) and whole.duration_s > 0
    assert (streamed.variant, streamed.completion_tokens) == ("b", 12)
    assert 0 < streamed.ttft_s <= streamed.duration_s and streamed.tpot_s >= 0


async def test_an_answer_that_is_no_stream_teaches_the_ladder_no_ttft_but_takes_up_room(router):
    router.configure(ladder=LADDER)
    held = Held(router, "a")
    asked = asyncio.ensure_future(router.chat())
    await until(lambda: router.relay.asked == ["a"])
    assert (await ladder_view(router))["a"]["in_flight"] == 1
    held.go_on.set()
    await asked
    router.relay.scripts["a"] = lambda: FakeAnswer(USAGE)
    await router.chat()
    view = (await ladder_view(router))["a"]
    assert (view["in_flight"], view["ttft_p95_s"], view["tpot_p95_s"]) == (0, None, None)
    router.relay.scripts["a"] = lambda: FakeAnswer(*STREAM, headers=EVENTS)
    await router.chat(stream=True)
    view = (await ladder_view(router))["a"]
    assert view["ttft_p95_s"] > 0 and view["tpot_p95_s"] >= 0
    recent = router.app._path.latency.view("a", router.app._clock())
    assert recent["n"] == 1


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/embeddings"])
async def test_what_generates_nothing_has_no_latency(router, path):
    router.configure(ladder=LADDER)
    router.relay.scripts["a"] = lambda: FakeAnswer(USAGE)
    assert (await router.chat(path=path)).status == 200
    assert router.meters.router.seen == []
    meter = router.app._path._served["m"].ladder._meter
    assert meter._rungs["a"].duration_s is None


@pytest.mark.parametrize(("path", "n_in_flight"), [("/tokenize", 0), ("/v1/embeddings", 1)])
async def test_tokenizing_takes_up_no_room_on_a_rung(router, path, n_in_flight):
    router.configure(ladder=LADDER)
    held = Held(router, "a")
    asked = asyncio.ensure_future(router.chat(path=path))
    await until(lambda: router.relay.asked == ["a"])
    assert (await ladder_view(router))["a"]["in_flight"] == n_in_flight
    held.go_on.set()
    await asked
    assert (await ladder_view(router))["a"]["in_flight"] == 0


async def ladder_view(router):
    return (await router.status())["aliases"]["m"]["ladder"]["rungs"]


async def test_each_request_has_one_structured_line_that_says_nothing_of_its_text(router, caplog):
    router.configure(log_requests=True)
    router.relay.scripts["a"] = lambda: FakeAnswer(USAGE)
    with caplog.at_level("INFO", logger="ray.serve"):
        await router.chat(("x-request-id", "r-1"), messages=[{"content": "a secret"}])
        await router.chat(("x-request-id", "r-2"), model="a secret model")
    answered, refused = (record for record in caplog.records if record.message == "request")
    assert (answered.request, answered.tenant, answered.model) == ("r-1", "anonymous", "m")
    assert (answered.variant, answered.route_reason, answered.status) == ("a", "weighted", 200)
    assert (answered.prompt_tokens, answered.completion_tokens) == (30, 12)
    assert answered.ttft_ms is None and answered.duration_ms > 0
    assert (answered.levelname, answered.whole, answered.ending) == ("INFO", True, "whole")
    assert (answered.failed_attempts, answered.trace) == ([], None)
    assert (refused.request, refused.status, refused.code) == ("r-2", 404, "model_not_found")
    assert "secret" not in repr([vars(answered), vars(refused)])
    caplog.clear()
    router.configure()
    await router.chat()
    assert not [record for record in caplog.records if record.message == "request"]


async def test_the_line_of_a_request_says_who_failed_it_before_and_how_it_broke_off(router, caplog):
    router.configure(log_requests=True, split={"a": 10_000, "b": 0}, fallback=["b"])
    router.relay.scripts["a"] = busy("it is full")
    router.relay.scripts["b"] = lambda: FakeAnswer(
        b"data: {}\n\n", UpstreamTruncatedError("gone"), headers=EVENTS
    )
    with caplog.at_level("INFO", logger="ray.serve"):
        await router.chat(("x-request-id", "r-1"), stream=True)
    (line,) = (record for record in caplog.records if record.message == "request")
    assert (line.request, line.variant, line.whole, line.ending) == ("r-1", "b", False, "broke_off")
    assert line.failed_attempts == ["a: it is full"]
    # Serve holds lines back until one of them is an error.
    assert line.levelname == "ERROR"


async def test_the_line_of_a_request_whose_client_left_accuses_nobody(router, caplog):
    router.configure(log_requests=True)
    router.relay.scripts["a"] = lambda: FakeAnswer(b"{", asyncio.Event())
    with caplog.at_level("INFO", logger="ray.serve"):
        asked = asyncio.ensure_future(router.chat())
        await until(lambda: router.relay.answers)
        await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    (line,) = (record for record in caplog.records if record.message == "request")
    assert (line.levelname, line.whole, line.ending) == ("WARNING", False, "client_left")
