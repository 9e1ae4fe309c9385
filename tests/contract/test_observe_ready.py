"""What is asked of a target before the load: its variants, their replicas and their facts."""

import json
import time

import pytest

from loadtests.campaign import Campaign, parse_campaign
from loadtests.observe import ready
from loadtests.observe.discover import context_lengths, resolve_variants
from loadtests.observe.ready import tokens_per_word, wait_until_ready
from loadtests.records.manifest import VariantFacts
from serve_app.domain.errors import ConfigError, InvalidRunError, UnknownModelError
from tests.fakes.gateway import Gateway, as_json, as_text, one_token

CHAT = "/v1/chat/completions"


@pytest.fixture
def gateway():
    with Gateway() as running:
        running.answers["/v1/models"] = as_json(
            {
                "data": [
                    {"id": "m", "max_model_len": 512},
                    {"id": "m@a", "max_model_len": 1024},
                    {"id": "m@b"},
                    {"id": "other/m@c"},
                ]
            }
        )
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ready, "POLL_S", 0.01)


def campaign_for(gateway: Gateway, variants: object = ("a", "b"), **target: object) -> Campaign:
    return parse_campaign(
        {
            "target": {
                "base_url": gateway.url,
                "model": "m",
                "variants": variants if variants == "all" else list(variants),
                "ready_timeout_s": 10.0,
                **target,
            },
            "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4]},
            "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1.0, "duration_s": 1.0}],
        },
        "test",
    )


def variant(running: int | None, target: int | None = 1, **changes: object) -> dict:
    replicas = None if running is None else {"running": running, "target": target}
    said = {"ready": True, "asleep": False, "share_bp": 1, "facts": {"engine": "vllm 1"}}
    return {**said, "replicas": replicas, **changes}


def status(**variants: dict):
    return as_json({"model": "m", "variants": variants})


class TestDiscover:
    def test_all_are_the_pins_of_this_model_in_their_order(self, gateway):
        resolved = resolve_variants(campaign_for(gateway, "all"))
        assert resolved.variant_names() == ("a", "b")
        assert context_lengths(resolved) == {"a": 1024, "b": None}

    def test_a_variant_that_is_not_served_is_named_with_those_that_are(self, gateway):
        with pytest.raises(UnknownModelError, match=r"does not serve m@\{c\}.*'m': a, b"):
            resolve_variants(campaign_for(gateway, ["a", "c"]))

    def test_a_target_without_models_is_a_wrong_target(self, gateway):
        gateway.answers["/v1/models"] = as_text("<html>", 200)
        with pytest.raises(ConfigError, match="not a model list"):
            resolve_variants(campaign_for(gateway))
        del gateway.answers["/v1/models"]
        with pytest.raises(ConfigError, match=r"/v1/models: HTTP 404.*Set target\.base_url"):
            context_lengths(campaign_for(gateway))

    def test_nobody_there(self, gateway):
        campaign = campaign_for(gateway, base_url="http://127.0.0.1:9")
        with pytest.raises(ConfigError, match="refused"):
            resolve_variants(campaign)

    def test_tokens_per_word_are_the_targets_own_count(self, gateway):
        gateway.answers["/tokenize"] = lambda body: (
            200,
            json.dumps({"count": 3 * len(json.loads(body)["prompt"].split())}).encode(),
            {},
        )
        assert tokens_per_word(campaign_for(gateway)) == 3.0
        assert tokens_per_word(campaign_for(gateway), "four words are here") == 3.0
        (_, path, body) = gateway.asked[-1]
        assert (path, body["model"]) == ("/tokenize", "m@a")
        assert body["add_special_tokens"] is False

    @pytest.mark.parametrize(
        "answer",
        [as_json({}, 404), as_json({"tokens": 3}), as_text(b"\xff"), as_json({"count": 0})],
    )
    def test_without_a_count_there_is_none(self, gateway, answer):
        gateway.answers["/tokenize"] = answer
        assert tokens_per_word(campaign_for(gateway)) is None


class TestGate:
    def test_all_replicas_of_all_variants(self, gateway):
        gateway.answers["/status"] = status(a=variant(2, 2), b=variant(1), c=variant(0))
        waited: list[str] = []
        assert wait_until_ready(campaign_for(gateway), waited.append) == {
            "a": VariantFacts(replicas=2, facts={"engine": "vllm 1"}),
            "b": VariantFacts(replicas=1, facts={"engine": "vllm 1"}),
        }
        assert waited == []
        assert {path for _, path, _ in gateway.asked} == {"/status"}, "no request was needed"

    def test_it_waits_for_the_last_replica_and_says_so(self, gateway):
        answers = iter(
            [status(a=variant(1, 3), b=variant(1)), status(a=variant(3, 3), b=variant(1))]
        )
        gateway.answers["/status"] = lambda body: next(answers)(body)
        waited: list[str] = []
        found = wait_until_ready(campaign_for(gateway), waited.append)
        assert waited == ["waiting for a: 1 of 3 replicas"]
        assert found["a"].replicas == 3

    @pytest.mark.parametrize(
        ("said", "lacking"),
        [
            (variant(1, 2), "1 of 2 replicas"),
            (variant(0, 0), "0 of 0 replicas"),
            (variant(1, None), "1 of \\? replicas"),
            (variant(2, 1), "2 of 1 replicas"),  # one is about to leave
            (variant(None), "an unknown number of replicas"),
            (variant(1, ready=False), "1 of 1 replicas, not ready"),
            (variant(1, facts=None), "1 of 1 replicas, not ready"),
        ],
    )
    def test_what_is_lacking_when_time_is_up(self, gateway, said, lacking):
        gateway.answers["/status"] = status(a=said, b=variant(1))
        start_s = time.monotonic()
        with pytest.raises(InvalidRunError, match=f"within 0.1 s have a: {lacking}. See") as error:
            wait_until_ready(campaign_for(gateway, ready_timeout_s=0.1), lambda _: None)
        assert "b:" not in str(error.value)
        assert time.monotonic() - start_s < 5

    def test_a_variant_that_the_status_does_not_know(self, gateway):
        gateway.answers["/status"] = status(a=variant(1))
        with pytest.raises(InvalidRunError, match="b: missing in /status"):
            wait_until_ready(campaign_for(gateway, ready_timeout_s=0.1), lambda _: None)

    def test_a_router_that_is_still_starting_is_waited_for(self, gateway):
        answers = iter([as_json({}, 503), status(a=variant(1), b=variant(1))])
        gateway.answers["/status"] = lambda body: next(answers)(body)
        waited: list[str] = []
        assert set(wait_until_ready(campaign_for(gateway), waited.append)) == {"a", "b"}
        assert waited == ["waiting for a: unknown (HTTP 503); b: unknown (HTTP 503)"]

    def test_one_that_sleeps_is_woken_by_a_request(self, gateway):
        asleep = variant(0, 0, ready=False, asleep=True)
        gateway.answers["/status"] = status(a=asleep, b=variant(1))

        def wake(body: bytes):
            gateway.answers["/status"] = status(a=variant(1), b=variant(1))
            return one_token("a")(body)

        gateway.answers[CHAT] = wake
        found = wait_until_ready(campaign_for(gateway), lambda _: None)
        assert found["a"].replicas == 1
        (body,) = [body for _, path, body in gateway.asked if path == CHAT]
        assert (body["model"], body["max_tokens"], body["stream"]) == ("m@a", 1, True)

    def test_one_that_does_not_wake(self, gateway):
        gateway.answers["/status"] = status(a=variant(0, 0, asleep=True), b=variant(1))
        gateway.answers[CHAT] = as_json({"error": {}}, 503)
        with pytest.raises(InvalidRunError, match=r"a: no answer \(HTTP 503\)"):
            wait_until_ready(campaign_for(gateway, ready_timeout_s=0.1), lambda _: None)


class TestGateWithoutStatus:
    """A bare vLLM, or another gateway: what can be known is that a request succeeds."""

    @pytest.mark.parametrize("page", [as_text("", 404), as_text("<html>"), as_json({"up": 1})])
    def test_one_request_to_each_variant(self, gateway, page):
        gateway.answers["/status"] = page
        gateway.answers[CHAT] = one_token()
        found = wait_until_ready(campaign_for(gateway), lambda _: None)
        assert found == {"a": VariantFacts(), "b": VariantFacts()}
        models = [body["model"] for _, path, body in gateway.asked if path == CHAT]
        assert models == ["m@a", "m@b"]

    def test_who_has_answered_is_not_asked_again(self, gateway):
        def answer(body: bytes):
            is_late = json.loads(body)["model"] == "m@b" and len(gateway.asked) < 6
            return (as_json({}, 503) if is_late else one_token())(body)

        gateway.answers[CHAT] = answer
        wait_until_ready(campaign_for(gateway), lambda _: None)
        models = [body["model"] for _, path, body in gateway.asked if path == CHAT]
        assert models.count("m@a") == 1
        assert models.count("m@b") > 1

    @pytest.mark.parametrize(
        ("answer", "lacking"),
        [
            (one_token(is_whole=False), "an answer cut short"),
            (one_token("z"), "an answer of z"),
            (as_json({}, 404), "no answer \\(HTTP 404\\)"),
        ],
    )
    def test_an_answer_that_is_none(self, gateway, answer, lacking):
        gateway.answers[CHAT] = answer
        with pytest.raises(InvalidRunError, match=f"a: {lacking}; b: {lacking}"):
            wait_until_ready(campaign_for(gateway, ready_timeout_s=0.1), lambda _: None)
