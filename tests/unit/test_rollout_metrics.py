"""Counters and histograms of Ray's pages become windows of two arms."""

import asyncio
import math

import pytest

from serve_app.config.parse import parse
from serve_app.config.rollout_evidence import MetricsConfig
from serve_app.rollout.judge import RolloutVerdict, Ruling, Standing, begin_step
from serve_app.rollouts.evidence_metrics import MetricsEvidence, apart, arm_window, growth
from serve_app.rollouts.exporter import Exporter
from serve_app.rollouts.state import RolloutState
from tests.fakes.rollouts import FakeClock, rollout_config

PAGE = "http://head:8080/metrics"


class FakePages:
    """What Ray's pages say; counters go up by `add`."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self.is_down = False
        for replica in ("a", "b"):
            self.start(replica)

    def start(self, replica: str) -> None:
        """What a replica of the router says before any request."""
        for variant in ("int8", "gptq"):
            self.add("quantile_router_variant_ready", 1, variant=variant, replica=replica)

    def add(self, name: str, value: float, **labels: str) -> None:
        told = ",".join(f'{key}="{text}"' for key, text in sorted(labels.items()))
        series = f"ray_{name}{{{told}}}"
        self.counters[series] = self.counters.get(series, 0.0) + value

    def serve(self, variant: str, n: int, n_slow: int = 0, replica: str = "a", **how: str) -> None:
        labels = {"reason": "weighted", "status": "200"} | how
        self.add("quantile_router_requests_total", n, variant=variant, replica=replica, **labels)
        for le, count in (("0.1", n - n_slow), ("1.0", n), ("+Inf", n)):
            self.add(
                "quantile_router_ttft_seconds_bucket",
                count,
                variant=variant,
                le=le,
                replica=replica,
            )

    def read(self, url: str, timeout_s: float) -> str:
        if self.is_down:
            raise OSError("connection refused")
        lines = [f"{series} {value}" for series, value in self.counters.items()]
        return "\n".join(["# TYPE ray_other counter", "ray_other 3", *lines]) + "\n"


@pytest.fixture
def pages():
    return FakePages()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def evidence(pages, clock):
    config = parse(
        MetricsConfig,
        {"kind": "metrics", "urls": [PAGE], "window_s": 20, "min_window_requests": 10},
        where="test",
    )
    return MetricsEvidence(config, "int8", "gptq", clock.clock, pages.read)


def take(evidence, clock, seconds: float):
    clock.now_s += seconds
    return asyncio.run(evidence.take())


def test_a_window_has_what_is_new_of_both_arms(evidence, pages, clock):
    pages.serve("int8", 5000)
    pages.serve("gptq", 7)
    asyncio.run(evidence.begin())
    pages.serve("int8", 90, n_slow=5)
    pages.serve("int8", 10, replica="b", reason="sticky")
    pages.serve("gptq", 20, n_slow=3)
    assert not take(evidence, clock, 10).windows
    (window,) = take(evidence, clock, 15).windows
    assert (window.baseline.requests, window.candidate.requests) == (100, 20)
    assert window.baseline.above("ttft", 0.1) == (5, 100)
    assert window.candidate.above("ttft", 0.1) == (3, 20)
    assert not take(evidence, clock, 5).windows


def test_a_candidate_whose_requests_another_answered_has_failed_them(evidence, pages, clock):
    asyncio.run(evidence.begin())
    pages.serve("int8", 100)
    pages.serve("gptq", 30)
    pages.serve("gptq", 2, status="502")
    pages.add("quantile_router_fallbacks_total", 8, variant="gptq", replica="a")
    pages.serve("int8", 8, reason="fallback")  # answered for the candidate: not the baseline's own
    pages.add("quantile_router_broken_streams_total", 1, variant="gptq", replica="a")
    (window,) = take(evidence, clock, 25).windows
    assert (window.candidate.requests, window.candidate.errors) == (40, 11)
    assert (window.baseline.requests, window.baseline.errors) == (100, 0)


def test_what_callers_got_wrong_or_pinned_is_not_counted(evidence, pages, clock):
    asyncio.run(evidence.begin())
    for variant in ("int8", "gptq"):
        pages.serve(variant, 10)
        pages.serve(variant, 4, status="400")
        pages.serve(variant, 50, reason="pinned", status="500")
    (window,) = take(evidence, clock, 25).windows
    assert (window.candidate.requests, window.candidate.errors) == (14, 0)


def test_a_window_with_too_few_requests_grows(evidence, pages, clock):
    asyncio.run(evidence.begin())
    pages.serve("int8", 500)
    pages.serve("gptq", 6)
    assert not take(evidence, clock, 25).windows
    pages.serve("gptq", 6)
    (window,) = take(evidence, clock, 25).windows
    assert (window.baseline.requests, window.candidate.requests) == (500, 12)


def test_a_page_that_cannot_be_read_delays_a_window_and_is_told(evidence, pages, clock):
    asyncio.run(evidence.begin())
    pages.serve("int8", 50)
    pages.serve("gptq", 50)
    pages.is_down = True
    assert not take(evidence, clock, 25).windows
    assert "connection refused" in evidence.trouble
    pages.is_down = False
    assert take(evidence, clock, 5).windows
    assert evidence.trouble is None


def test_an_arm_that_no_page_tells_of_is_told(evidence, pages, clock):
    pages.serve("int8", 50)
    asyncio.run(evidence.begin())
    assert "no requests of gptq yet" in evidence.trouble


def test_a_process_that_began_anew_counts_from_nothing():
    series = ("quantile_router_requests_total", (("replica", "r"), ("variant", "a")))
    assert growth({series: 500.0}, {series: 30.0}) == {series: 30.0}
    assert growth({series: 500.0}, {series: 530.0}) == {series: 30.0}
    ready = ("quantile_router_variant_ready", (("replica", "r"), ("variant", "b")))
    assert growth({ready: 1.0}, {series: 4.0}) == {series: 4.0}
    assert growth({}, {series: 4.0}) == {}


def test_a_replica_that_was_not_to_be_had_when_the_step_began_counts_from_the_next_window(
    evidence, pages, clock
):
    """A failed scrape at that moment, or a new one: its whole life is none of this window."""
    pages.serve("int8", 900, replica="c")
    pages.serve("gptq", 900, n_slow=900, replica="c")
    pages.start("c")
    gone = {key: pages.counters.pop(key) for key in list(pages.counters) if 'replica="c"' in key}
    asyncio.run(evidence.begin())
    pages.counters.update(gone)
    for variant in ("int8", "gptq"):
        pages.serve(variant, 20)
    (window,) = take(evidence, clock, 25).windows
    assert (window.baseline.requests, window.candidate.requests) == (20, 20)
    pages.serve("int8", 10, replica="c")
    pages.serve("gptq", 10, replica="c", status="500")
    (window,) = take(evidence, clock, 25).windows
    assert (window.baseline.requests, window.candidate.requests) == (10, 10)
    assert window.candidate.errors == 10


def test_a_series_that_was_away_for_a_while_is_not_counted_again(evidence, pages, clock):
    pages.serve("int8", 5000, replica="old")
    asyncio.run(evidence.begin())
    kept = dict(pages.counters)
    pages.counters.clear()
    for _ in range(2):
        pages.serve("int8", 20)
        pages.serve("gptq", 20)
        (window,) = take(evidence, clock, 25).windows
        assert window.baseline.requests == 20
        pages.counters.update(kept)


def test_cumulative_counts_come_apart():
    assert apart({0.1: 3, 0.5: 3, 1.0: 10, math.inf: 12}) == {0.1: 3, 1.0: 7, math.inf: 2}
    assert arm_window({}, "a").latencies == {}


def test_the_rollouts_own_metrics_say_where_it_is():
    config = rollout_config()
    exporter = Exporter(config)
    plan = config.to_plan()
    state = RolloutState(
        digest="d",
        original_bp={},
        current_bp={},
        started_at="now",
        standing=begin_step(plan, Standing()),
    )
    exporter.show(state, Ruling(RolloutVerdict.CONTINUE, "why"), ())
    labels = {"model": "m", "candidate": "gptq"}

    def value(name: str, **more: str) -> float | None:
        return exporter.registry.get_sample_value(name, labels | more)

    assert value("quantile_rollout_step") == 0
    assert value("quantile_rollout_share_bp") == 1000
    assert value("quantile_rollout_against_log10_e") == 0
    assert value("quantile_rollout_verdict", verdict="continue") == 1
    assert value("quantile_rollout_verdict", verdict="rollback") == 0
    assert value("quantile_rollout_margin_log10_e", guard="errors") == 0
