"""Figures and budgets of the relay benchmark, from rounds whose truth is known."""

import os

import pytest

from loadtests.relay_bench.budgets import Verdict, judge
from loadtests.relay_bench.engine import EngineRound, OfDirect, of_direct, one_round, one_variant
from loadtests.relay_bench.figures import MIN_FOR_P99, Spread, figures, percentile, spread
from loadtests.relay_bench.nouns import (
    DEPLOYED,
    DIRECT,
    HANDLES,
    HAPROXY,
    LITELLM,
    ROUTER,
    SAMPLED,
    SGLANG,
    SILENT,
    TRACED,
    Level,
    Sample,
    Seen,
    Way,
)
from loadtests.relay_bench.parts import Load, levels, measure_parts, parts_of, solve
from loadtests.relay_bench.parts import sample as parts_sample
from loadtests.relay_bench.rounds import MAX_REQUESTS, level
from serve_app.domain.errors import ConfigError


def sample(way: str, number: int = 1, cpu_us: float | None = None, ttft_ms=50.0, **more) -> Sample:
    """A round of 1,000 tokens, each of which cost `cpu_us`; every TTFT is the same."""
    values = {
        "clients": 16, "tokens": 1000, "streams": 10, "wall_s": 2.0, "client_cpu_s": 0.1,
        "ttfts_s": [ttft_ms / 1e3] * 60, "cpu_s": None if cpu_us is None else cpu_us / 1e3,
    }  # fmt: skip
    return Sample(way=way, round=number, **{**values, **more})


def by_way(samples, clients=16):
    return {each.way: each for each in figures(samples) if each.clients == clients}


class TestFigures:
    def test_a_ratio_and_a_difference_are_taken_inside_their_round(self):
        # Round 2 met a machine ten times slower: what the relay costs beside the others stays.
        found = by_way(
            [
                sample(DIRECT, 1, ttft_ms=50), sample(DIRECT, 2, ttft_ms=500),
                sample(HAPROXY, 1, 20, 51), sample(HAPROXY, 2, 200, 501),
                sample(ROUTER, 1, 40, 52), sample(ROUTER, 2, 400, 502),
            ]
        )[ROUTER]  # fmt: skip
        assert found.times_haproxy == Spread(2.0, 2.0, 2.0, 2)
        assert found.added_p50_ms.median == pytest.approx(2.0)
        assert (found.cpu_us_per_token.low, found.cpu_us_per_token.high) == (40.0, 400.0)

    def test_nothing_is_added_to_the_direct_way_and_it_has_no_relay(self):
        direct = by_way([sample(DIRECT), sample(HAPROXY, cpu_us=20)])[DIRECT]
        assert direct.cpu_us_per_token is None
        assert direct.path_us_per_token is None
        assert direct.times_haproxy is None
        assert direct.added_p50_ms is None
        assert direct.added_p99_ms is None
        assert direct.streams_per_s == Spread(5.0, 5.0, 5.0, 1)

    def test_p99_is_that_of_all_rounds_and_missing_with_too_few(self):
        few = by_way([sample(DIRECT), sample(ROUTER, cpu_us=30)])[ROUTER]
        assert few.n_ttfts == 60 < MIN_FOR_P99
        assert few.added_p99_ms is None
        # 120 samples: the 119th is the P99, and two are slow.
        slow = [0.050] * 58 + [0.090, 0.100]
        many = by_way(
            [
                sample(DIRECT, 1), sample(DIRECT, 2),
                sample(ROUTER, 1, 30), sample(ROUTER, 2, 30, ttfts_s=slow),
            ]
        )[ROUTER]  # fmt: skip
        assert many.added_p99_ms == pytest.approx(40.0)

    def test_the_whole_way_costs_what_its_helpers_cost_too(self):
        found = by_way([sample(DEPLOYED, cpu_us=30, path_cpu_s=0.08)])[DEPLOYED]
        assert found.path_us_per_token.median == pytest.approx(80.0)
        assert found.cpu_us_per_token.median == pytest.approx(30.0)
        assert found.times_haproxy is None  # no HAProxy pass in this round

    def test_what_telling_costs_is_taken_inside_its_round(self):
        found = by_way(
            [
                sample(SILENT, 1, 50), sample(SILENT, 2, 500),
                sample(TRACED, 1, 54), sample(TRACED, 2, 530), sample(DIRECT, 1),
            ]
        )  # fmt: skip
        times = found[TRACED].times_silent
        assert (times.median, times.n) == (pytest.approx(1.07), 2)
        assert found[SILENT].times_silent.median == 1.0
        assert found[DIRECT].times_silent is None
        assert by_way([sample(TRACED, 1, 54)])[TRACED].times_silent is None

    def test_levels_are_apart(self):
        samples = [sample(ROUTER, cpu_us=30), sample(ROUTER, cpu_us=20, clients=64)]
        assert by_way(samples)[ROUTER].cpu_us_per_token.median == pytest.approx(30)
        assert by_way(samples, 64)[ROUTER].cpu_us_per_token.median == pytest.approx(20)

    @pytest.mark.parametrize(
        ("values", "share", "expected"),
        [([3.0], 0.5, 3.0), ([1, 2, 3, 4], 0.5, 2), ([1, 2, 3], 0.5, 2), (range(1, 101), 0.99, 99)],
    )
    def test_percentiles_are_values_that_were_seen(self, values, share, expected):
        assert percentile(list(values), share) == expected

    def test_a_spread_of_nothing_is_missing(self):
        assert spread([]) is None


def full_run(
    router_us=30.0, added_ms=1.0, peer_us=60.0, peer_ms=3.0, deployed_ms=2.0, traced_us=31.9
):
    ttft = {
        HAPROXY: 0.2, ROUTER: added_ms, DEPLOYED: deployed_ms, HANDLES: 5, LITELLM: 20,
        SGLANG: peer_ms, SILENT: 1, TRACED: 1, SAMPLED: 1,
    }  # fmt: skip
    cost = {
        HAPROXY: 20, ROUTER: router_us, DEPLOYED: router_us, HANDLES: 120, LITELLM: 1000,
        SGLANG: peer_us, SILENT: 29, TRACED: traced_us, SAMPLED: 30,
    }  # fmt: skip
    samples = [sample(DIRECT)]
    return figures(samples + [sample(name, 1, cost[name], 50 + ttft[name]) for name in cost])


RATIO = OfDirect(0.98, 0.97, 0.99, 10)


def verdicts(found):
    return {each.what: each.verdict for each in found}


class TestBudgets:
    def test_all_kept(self):
        found = judge(full_run(), RATIO)
        assert {each.verdict for each in found} == {Verdict.KEPT}
        assert len(found) == 11

    @pytest.mark.parametrize(
        ("changed", "missed"),
        [
            (
                {"router_us": 51.0},
                {"CPU per token, x the HAProxy pass", "the same behind Serve's ingress"},
            ),
            ({"peer_us": 29.0}, {"CPU us per token, below SGLang gateway"}),
            ({"peer_ms": 0.9}, {"added TTFT P50 ms, below SGLang gateway"}),
            ({"traced_us": 32.0}, {f"CPU per token, x telling nothing: {TRACED}"}),
            ({"deployed_ms": 4.1}, {"the same behind Serve's ingress, ms"}),
            (
                {"added_ms": 4.1, "peer_ms": 5.0},
                {"added TTFT P50, ms"},
            ),
        ],
    )
    def test_each_budget_can_be_missed(self, changed, missed):
        found = judge(full_run(**changed), RATIO)
        assert {each.what for each in found if each.verdict is Verdict.MISSED} == missed

    @pytest.mark.parametrize(
        ("low", "high", "n", "verdict", "have"),
        [
            (0.97, 1.02, 10, Verdict.KEPT, "0.980 [0.970, 1.020]"),
            (0.95, 0.9699, 10, Verdict.MISSED, "0.980 [0.950, 0.970]"),
            (0.9699, 1.02, 10, Verdict.NOT_DECIDED, "0.980 [0.970, 1.020]"),
            (0.96, 0.97, 10, Verdict.NOT_DECIDED, "0.980 [0.960, 0.970]"),
            (None, None, 5, Verdict.NOT_DECIDED, "0.980, no interval: need 6 rounds, have 5"),
        ],
    )
    def test_an_engine_is_judged_by_the_whole_interval(self, low, high, n, verdict, have):
        finding = judge(full_run(), OfDirect(0.98, low, high, n))[-1]
        assert (finding.what, finding.allowed) == (
            "a real engine's throughput, x direct",
            "at least 0.97",
        )
        assert (finding.verdict, finding.have) == (verdict, have)

    def test_what_was_not_measured_is_not_kept(self):
        samples = [sample(DIRECT), sample(HAPROXY, cpu_us=20), sample(ROUTER, cpu_us=30)]
        found = verdicts(judge(figures(samples), None))
        assert found["CPU us per token, below LiteLLM proxy"] is Verdict.NOT_MEASURED
        assert found["a real engine's throughput, x direct"] is Verdict.NOT_MEASURED
        assert found[f"CPU per token, x telling nothing: {TRACED}"] is Verdict.NOT_MEASURED
        assert found["CPU per token, x the HAProxy pass"] is Verdict.KEPT

    def test_without_the_level_of_the_budgets_nothing_is_kept(self):
        samples = [sample(name, cpu_us=20, clients=64) for name in (DIRECT, HAPROXY, ROUTER)]
        assert set(verdicts(judge(figures(samples), None)).values()) == {Verdict.NOT_MEASURED}


class TestEngine:
    def test_the_ratio_is_taken_inside_its_round(self):
        # every other round met a machine ten times slower
        rounds = [EngineRound(s, s * (0.90 + n / 100)) for n, s in enumerate([100.0, 10.0] * 5)]
        found = of_direct(rounds)
        assert found.median == pytest.approx(0.945)
        # of ten: the second and the last but one, between which the median is with 97.9 %
        assert (found.low, found.high, found.n) == (pytest.approx(0.91), pytest.approx(0.98), 10)
        assert of_direct([]) is None

    @pytest.mark.parametrize(("n", "has"), [(1, False), (5, False), (6, True)])
    def test_six_rounds_make_an_interval(self, n, has):
        found = of_direct([EngineRound(100, 98 + i) for i in range(n)])
        assert (found.low is not None, found.high is not None) == (has, has)
        if has:
            assert (found.low, found.high) == (0.98, 1.03)

    @pytest.mark.parametrize(
        ("number", "order"),
        [(0, "direct router router direct"), (3, "router direct direct router")],
    )
    def test_a_machine_that_slows_down_evenly_is_in_no_ratio(self, number, order):
        asked = []

        def ask(way: str) -> Seen:
            asked.append(way)  # each turn takes 1 s longer than the one before
            return Seen(1000, 16, [], 10.0 + len(asked), 0.1)

        found = one_round(number, ask)
        assert asked == order.split()
        assert found.direct_tokens_per_s == found.router_tokens_per_s == 2000 / 25

    def test_one_variant_of_a_serve_file(self):
        args = {"model": "m", "ingress_url": "http://127.0.0.1:8000", "probe_interval_s": 2}
        router = {"name": "router", "args": args}
        config = {"applications": [router, {"name": "a"}, {"name": "b"}]}
        alone, model = one_variant(config, "b", 4711)
        assert model == "m"
        assert [app["name"] for app in alone["applications"]] == ["router", "b"]
        assert alone["http_options"]["port"] == 4711
        own = alone["applications"][0]
        assert own["args"] == {**args, "ingress_url": "http://127.0.0.1:4711"}
        assert own["deployments"][0]["user_config"] == {"split": {"b": 10_000}, "fallback": []}
        with pytest.raises(ConfigError, match="need the applications `router` and `c`, have a, b"):
            one_variant(config, "c", 1)


class TestParts:
    """What a relay costs at rest, per request and per token."""

    @staticmethod
    def load(rest, request_us, token_us, n_requests: int, tokens: int, elapsed_s: float) -> Load:
        cost_us = rest * elapsed_s + n_requests * (request_us + tokens * token_us)
        return Load(n_requests, n_requests * tokens, elapsed_s, cost_us / 1e6)

    @pytest.mark.parametrize("costs", [(8000, 650, 36), (0, 0, 20)])
    def test_two_lengths_of_answer_tell_them_apart(self, costs):
        rest, request_us, token_us = costs
        short, long = self.load(*costs, 656, 4, 4.0), self.load(*costs, 48, 256, 9.0)
        found = solve(rest, short, long)
        assert found == (pytest.approx(request_us, abs=1e-6), pytest.approx(token_us))
        usual = self.load(*costs, 112, 64, 5.5)
        part = parts_sample(ROUTER, 1, rest, short, usual, long)
        assert part.explained == pytest.approx(1.0)
        all_us = (rest * 5.5 + 112 * request_us) / (112 * 64) + token_us
        assert part.usual_us_per_token == pytest.approx(all_us)

    def test_what_they_do_not_explain_is_told(self):
        short, long = self.load(0, 500, 40, 656, 4, 4.0), self.load(0, 500, 40, 48, 256, 9.0)
        usual = self.load(0, 1000, 80, 112, 64, 5.5)  # while the machine was slower
        assert parts_sample(ROUTER, 1, 0, short, usual, long).explained == pytest.approx(0.5)

    def test_all_lengths_are_asked_of_each_way_that_has_a_relay_from_another_on_each_round(
        self, monkeypatch
    ):
        monkeypatch.setattr("loadtests.relay_bench.parts.REST_S", 0.01)
        pids = (os.getpid(),)
        ways = [Way(DIRECT, 1, "/"), Way(ROUTER, 1, "/", pids), Way(HANDLES, 1, "/", pids)]
        asked = []

        def run(way: Way, load: Level) -> Sample:
            asked.append((way.name, load.tokens))
            streams = load.clients * (load.requests + 1)
            tokens = streams * load.tokens
            cost_s = (500 * streams + 30 * tokens) / 1e6
            return sample(way.name, streams=streams, tokens=tokens, cpu_us=cost_s * 1e3)

        both = [list(measure_parts(ways, levels(16, 64), n, run)) for n in (1, 2)]
        order = [[part.way for part in found] for found in both]
        assert order == [[HANDLES, ROUTER], [ROUTER, HANDLES]]
        assert asked[:3] == [(HANDLES, 4), (HANDLES, 64), (HANDLES, 256)]
        of_router = parts_of(both[0] + both[1])[1]
        assert (of_router.way, of_router.us_per_token.n) == (ROUTER, 2)
        assert of_router.rest_us_per_s.low > 0
        # its waits took no time to speak of, so hardly anything is taken off for rest
        assert of_router.us_per_request.median == pytest.approx(500, rel=0.02)
        assert of_router.us_per_token.median == pytest.approx(30, rel=0.02)


@pytest.mark.parametrize(
    ("clients", "requests", "tokens"),
    [(1, MAX_REQUESTS, 8), (16, 6, 64), (64, 2, 64), (256, 1, 64)],
)
def test_levels(clients, requests, tokens):
    load = level(clients, 64)
    assert (load.clients, load.requests, load.tokens) == (clients, requests, tokens)
