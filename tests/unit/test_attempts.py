"""Who is asked before the first byte, how often and for how long; scripted ways to the variants."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.config.resilience import BreakerConfig, ResilienceConfig, RetryConfig
from serve_app.domain.errors import DeadlineError, MalformedRequestError, VariantUnavailableError
from serve_app.domain.traffic import RouteDecision, RouteReason
from serve_app.serving.attempts import Attempts
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.limits import Ending
from serve_app.serving.relay import (
    IngressDownError,
    ReplicaLostError,
    VariantBusyError,
    VariantDownError,
)
from serve_app.serving.upstream import UpstreamTruncatedError
from tests.fakes.asgi import Exchange
from tests.fakes.metrics import RecordingMetrics
from tests.fakes.relay import FakeAnswer, FakeRelay, FakeSleepers

SCOPE = Exchange(None, "POST", "/v1/completions").scope
A_THEN_B = RouteDecision("a", RouteReason.STICKY, ("b",))
A_B_C = RouteDecision("a", RouteReason.WEIGHTED, ("b", "c"))
PINNED = RouteDecision("a", RouteReason.PINNED)
NO_RETRY = RetryConfig(budget_share=0.0, budget_min_per_s=0.0)


def outcomes(*each: Exception | FakeAnswer):
    """A script: one outcome for each request, the last of them for all that follow."""
    left = list(each)

    def answer() -> FakeAnswer:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return answer


def good() -> FakeAnswer:
    return FakeAnswer(b"{}")


class Bench:
    """Attempts over scripted variants; `now_s` is the clock, which only the test moves."""

    def __init__(self) -> None:
        self.now_s = 500.0
        self.relay = FakeRelay("a", "b", "c")
        self.metrics = RecordingMetrics()
        self.sleepers = FakeSleepers()
        self.directory = VariantDirectory(self.relay, 0.001, self.sleepers)
        self.it = Attempts(
            self.relay, self.directory, self.metrics, lambda: self.now_s, 0.05, lambda: 0.5
        )

    def script(self, **variants) -> None:
        for name, each in variants.items():
            self.relay.scripts[name] = outcomes(*each) if isinstance(each, tuple) else each

    async def ask(self, decision=A_THEN_B, deadline_s=None) -> tuple[str, str]:
        variant, reason, answer = await self.it.first_answer(decision, SCOPE, b"", deadline_s)
        while await answer.read():
            pass
        answer.release()
        self.it.observe(variant, answer.status, Ending.WHOLE)
        return variant, str(reason)

    async def refused(self, decision=A_THEN_B, kind=VariantUnavailableError, said="", **more):
        with pytest.raises(kind, match=said or None) as caught:
            await self.ask(decision, **more)
        return caught.value


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    bench.directory.close()
    assert bench.relay.leftovers() == []


class TestRetries:
    async def test_a_lost_replica_is_followed_by_another_of_the_same_variant(self, bench):
        bench.script(a=(ReplicaLostError("lost"), good()))
        assert await bench.ask() == ("a", "sticky")
        assert bench.relay.asked == ["a", "a"]
        assert (bench.metrics.retries, bench.metrics.fallbacks) == (["a"], [])

    @pytest.mark.parametrize("silent", [True, False])
    async def test_where_no_other_replica_is_the_stand_in_is_asked_at_once(self, bench, silent):
        """Serve would hold the request until there is one again."""
        bench.script(a=(ReplicaLostError("lost"), good()))
        if silent:
            bench.relay.cards["a"] = lambda: FakeAnswer(asyncio.Event())
        else:
            del bench.relay.cards["a"]
        assert await asyncio.wait_for(bench.ask(), 2) == ("b", "fallback")
        assert bench.relay.asked == ["a", "b"]

    async def test_without_a_stand_in_it_is_waited_for_as_for_one_that_sleeps(self, bench):
        del bench.relay.cards["a"]
        bench.script(a=(ReplicaLostError("lost"), good()))
        assert await bench.ask(PINNED) == ("a", "pinned")
        held = [ReplicaLostError("lost")]

        def lost_then_held() -> FakeAnswer:
            if held:
                raise held.pop()
            return FakeAnswer(asyncio.Event())

        bench.script(a=lost_then_held)
        await asyncio.wait_for(bench.refused(PINNED, said="a: lost; a: it has no replica"), 2)

    async def test_lost_requests_share_one_look(self, bench):
        def lost_or_good() -> FakeAnswer:
            if len(bench.relay.asked) <= 20:
                raise ReplicaLostError("lost")
            return good()

        bench.it.configure(ResilienceConfig(breaker=None))
        bench.script(a=lost_or_good)
        await asyncio.gather(*(bench.ask() for _ in range(20)))
        assert bench.relay.asked == ["a"] * 40
        assert len(bench.relay.probe_answers) == 1

    async def test_then_by_the_stand_ins_in_their_order(self, bench):
        bench.script(a=(ReplicaLostError("lost"),), b=(ReplicaLostError("lost"),))
        assert await bench.ask(A_B_C) == ("c", "fallback")
        assert bench.relay.asked == ["a", "a", "b", "b", "c"]
        assert bench.metrics.retries == ["a", "a", "b", "b"]
        assert bench.metrics.fallbacks == ["a", "b"]

    async def test_a_pin_is_asked_again_and_never_stood_in_for(self, bench):
        bench.script(a=(ReplicaLostError("lost"), ReplicaLostError("lost again")))
        await bench.refused(PINNED, said="a: lost; a: lost again")
        assert bench.relay.asked == ["a", "a"]

    async def test_what_is_not_there_is_not_asked_twice(self, bench):
        bench.script(a=(VariantDownError("no application"),))
        assert await bench.ask() == ("b", "fallback")
        assert bench.relay.asked == ["a", "b"]

    async def test_a_head_whose_body_never_began_is_retried(self, bench):
        bench.script(a=lambda: FakeAnswer(UpstreamTruncatedError("gone")))
        assert await bench.ask() == ("b", "fallback")
        assert bench.relay.asked == ["a", "a", "b"]
        assert [answer.ended for answer in bench.relay.answers] == [
            ["closed"],
            ["closed"],
            ["released"],
        ]

    async def test_a_body_that_began_is_the_answer(self, bench):
        bench.script(a=lambda: FakeAnswer(b"x", UpstreamTruncatedError("gone")))
        variant, _, answer = await bench.it.first_answer(A_THEN_B, SCOPE, b"", None)
        assert (variant, await answer.read(), bench.relay.asked) == ("a", b"x", ["a"])
        answer.close()

    async def test_the_ingress_gets_a_moment_to_come_back(self, bench):
        bench.script(a=(IngressDownError("refused"), good()))
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert await bench.ask() == ("a", "sticky")
        assert loop.time() - began_s >= 0.05

    async def test_full_moves_on_without_a_retry(self, bench):
        bench.it.configure(ResilienceConfig(retry=NO_RETRY))
        bench.script(a=(VariantBusyError("full"),))
        for _ in range(50):
            assert await bench.ask() == ("b", "fallback")
        assert bench.metrics.retries == []
        assert bench.it.known_open() == set()

    async def test_the_budget_ends_retries_and_the_message_says_so(self, bench):
        bench.it.configure(
            ResilienceConfig(
                retry=RetryConfig(budget_share=0.0, budget_min_per_s=0.3, same_variant=0),
                breaker=None,
            )
        )
        bench.script(a=(ReplicaLostError("lost"),))
        for _ in range(3):
            assert await bench.ask() == ("b", "fallback")
        error = await bench.refused(said=r"a: lost; too many requests failed of late.*resilience")
        assert error.http_status == 503 and error.retry_after_s == 1.0
        assert bench.metrics.refused_retries == ["a"]
        bench.now_s += 12.1
        assert await bench.ask() == ("b", "fallback")

    async def test_same_variant_says_how_often(self, bench):
        bench.it.configure(ResilienceConfig(retry=RetryConfig(same_variant=3), breaker=None))
        bench.script(a=(ReplicaLostError("lost"),))
        await bench.ask()
        assert bench.relay.asked == ["a"] * 4 + ["b"]


class TestBreaker:
    @pytest.fixture
    async def bench(self, bench):
        bench.it.configure(ResilienceConfig(breaker=BreakerConfig(failures_in_a_row=4, jitter=0)))
        return bench

    async def opened(self, bench) -> None:
        bench.script(a=(ReplicaLostError("lost"),))
        for _ in range(2):
            await bench.ask()
        assert bench.metrics.breakers == [("a", "open")]
        assert bench.it.known_open() == {"a"}
        bench.relay.asked.clear()

    async def test_a_failing_variant_is_left_alone(self, bench):
        await self.opened(bench)
        assert await bench.ask() == ("b", "fallback")
        assert bench.relay.asked == ["b"]

    async def test_a_pin_is_told_when_to_ask_again(self, bench):
        await self.opened(bench)
        bench.now_s += 1.1
        await bench.refused(PINNED, said="lost")
        error = await bench.refused(PINNED, said="a: it failed too often, and is left alone")
        assert error.http_status == 503
        assert error.retry_after_s == pytest.approx(2.0)

    async def test_one_request_probes_and_its_answer_closes(self, bench):
        await self.opened(bench)
        go_on = asyncio.Event()
        bench.script(a=lambda: FakeAnswer(go_on, b"{}"))
        bench.now_s += 1.01
        assert bench.it.known_open() == set()
        probe = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        assert bench.it.known_open() == {"a"}
        assert await bench.ask() == ("b", "fallback")
        assert bench.it.view()["breakers"]["a"]["state"] == "half_open"
        go_on.set()
        assert await probe == ("a", "sticky")
        assert bench.metrics.breakers == [("a", "open"), ("a", "half_open"), ("a", "closed")]
        assert bench.it.known_open() == set()

    async def test_a_probe_that_fails_is_stood_in_for(self, bench):
        await self.opened(bench)
        bench.now_s += 1.01
        assert await bench.ask() == ("b", "fallback")
        assert bench.it.known_open() == {"a"}
        assert bench.relay.asked == ["a", "b"]  # not again: the breaker is open by now

    async def test_a_probe_whose_client_leaves_makes_room(self, bench):
        await self.opened(bench)
        bench.script(a=lambda: FakeAnswer(asyncio.Event()))
        bench.now_s += 1.01
        probe = asyncio.create_task(bench.ask())
        await asyncio.sleep(0.01)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert bench.it.known_open() == set()

    async def test_streams_that_break_open_it(self, bench):
        for _ in range(4):
            bench.it.observe("b", 200, Ending.BROKE_OFF)
        assert bench.it.known_open() == set()  # nothing of `b` was asked yet: there is no breaker
        bench.script(a=good)
        await bench.ask()
        for ending in (Ending.BROKE_OFF, Ending.SILENT) * 2:
            bench.it.observe("a", 200, ending)
        assert bench.it.known_open() == {"a"}
        assert bench.metrics.broken.count("a") == 4

    async def test_what_is_not_its_fault_does_not(self, bench):
        bench.script(a=good)
        await bench.ask()
        for ending in (Ending.DEADLINE, Ending.STOPPED, None) * 50:
            bench.it.observe("a", 200, ending)
        bench.script(a=(IngressDownError("refused"),))
        for _ in range(6):
            await bench.ask()
        assert bench.it.known_open() == set()
        assert bench.metrics.timeouts == [("a", "stream"), ("a", "drain")] * 50
        assert bench.metrics.broken == []

    async def test_it_can_be_done_without(self, bench):
        bench.it.configure(ResilienceConfig(breaker=None, retry=RetryConfig(same_variant=0)))
        bench.script(a=(ReplicaLostError("lost"),))
        for _ in range(50):
            assert await bench.ask() == ("b", "fallback")
        assert bench.it.known_open() == set() and bench.it.view()["breakers"] == {}

    async def test_another_config_keeps_what_did_not_change(self, bench):
        await self.opened(bench)
        config = ResilienceConfig(breaker=BreakerConfig(failures_in_a_row=4, jitter=0))
        bench.it.configure(config.model_copy(update={"request_timeout_ms": 1000}))
        assert bench.it.known_open() == {"a"}
        bench.it.configure(config.model_copy(update={"breaker": BreakerConfig()}))
        assert bench.it.known_open() == set()
        assert bench.metrics.breakers == [("a", "open"), ("a", "closed")]


class TestDeadlines:
    def test_the_clients_time_counts_from_its_arrival(self, bench):
        headers = [(b"x-request-timeout-ms", b"1500")]
        assert bench.it.deadline_s(headers, 10.0) == 11.5
        assert bench.it.deadline_s([], 10.0) is None

    def test_the_configs_limit_is_the_most(self, bench):
        bench.it.configure(ResilienceConfig(request_timeout_ms=2000))
        for asked, deadline_s in [(b"1500", 11.5), (b"2500", 12.0)]:
            assert bench.it.deadline_s([(b"x-request-timeout-ms", asked)], 10.0) == deadline_s
        assert bench.it.deadline_s([], 10.0) == 12.0

    @pytest.mark.parametrize("asked", [b"0", b"-1", b"1.5", b"", b"1e3", b"\xb2", b"86400001"])
    def test_no_time_is_the_callers_fault(self, bench, asked):
        with pytest.raises(MalformedRequestError, match="whole number of milliseconds"):
            bench.it.deadline_s([(b"x-request-timeout-ms", asked)], 10.0)

    async def test_each_attempt_is_told_what_is_left(self, bench):
        def later() -> FakeAnswer:
            bench.now_s += 0.4
            raise ReplicaLostError("lost")

        bench.script(a=later)
        assert await bench.ask(deadline_s=bench.now_s + 1) == ("b", "fallback")
        assert bench.relay.timeouts_s == [pytest.approx(left) for left in (1.0, 0.6, 0.2)]

    async def test_no_attempt_begins_after_it(self, bench):
        error = await bench.refused(kind=DeadlineError, deadline_s=bench.now_s - 0.001)
        assert (error.http_status, error.code) == (504, "deadline_exceeded")
        assert bench.relay.asked == []
        assert bench.metrics.timeouts == [("a", "first_byte")]

    @pytest.mark.parametrize("head_first", [False, True])
    async def test_a_variant_that_says_nothing_is_left_at_it(self, bench, head_first):
        silence = asyncio.Event()
        bench.script(a=lambda: FakeAnswer(silence, b"late"))
        if not head_first:
            ask = bench.relay.ask

            async def hang(*args):
                answer = await ask(*args)
                try:
                    await silence.wait()
                finally:
                    answer.close()

            bench.relay.ask = hang
        await bench.refused(kind=DeadlineError, said="'a'", deadline_s=bench.now_s + 0.02)
        assert bench.relay.answers[0].ended == ["closed"]
        assert bench.it.known_open() == set()

    async def test_a_short_time_of_the_clients_opens_no_breaker(self, bench):
        bench.script(a=lambda: FakeAnswer(asyncio.Event()))
        for _ in range(12):
            await bench.refused(kind=DeadlineError, deadline_s=bench.now_s + 0.001)
        assert bench.it.known_open() == set()

    async def test_the_configs_first_byte_limit_asks_another_and_counts(self, bench):
        bench.it.configure(ResilienceConfig(first_byte_timeout_ms=10))
        bench.script(a=lambda: FakeAnswer(asyncio.Event()))
        for _ in range(5):
            assert await bench.ask() == ("b", "fallback")
        assert bench.it.known_open() == {"a"}
        assert bench.relay.asked == ["a", "b"] * 5

    async def test_a_sleeper_is_given_its_time_to_wake_and_no_more_than_is_left(self, bench):
        bench.sleepers.asleep = frozenset("a")
        bench.directory.follow(["a"], ["a"])
        await asyncio.sleep(0.02)
        assert bench.directory.is_asleep("a")
        bench.script(a=lambda: FakeAnswer(asyncio.Event()))
        await bench.refused(PINNED, said="it has no replica .asleep")
        await bench.refused(PINNED, kind=DeadlineError, deadline_s=bench.now_s + 0.01)
        assert bench.it.known_open() == set()


async def test_the_wait_for_a_place_is_in_the_time_too(bench):
    async with bench.it.in_time(None), bench.it.in_time(bench.now_s + 1):
        pass
    with pytest.raises(DeadlineError, match="place in the router"):
        async with bench.it.in_time(bench.now_s + 0.01):
            await asyncio.sleep(5)
    assert bench.metrics.timeouts == [("none", "waiting")]
    with pytest.raises(TimeoutError, match="another's"):
        async with bench.it.in_time(bench.now_s + 1):
            raise TimeoutError("another's")


async def test_what_goes_wrong_with_us_is_no_verdict_on_the_variant(bench):
    for error in (KeyError("ours"), TimeoutError("nobody's limit")):
        bench.script(a=(error,))
        bench.relay.asked.clear()
        for _ in range(9):
            await bench.refused(kind=type(error))
        assert bench.it.known_open() == set()
        assert bench.relay.asked == ["a"] * 9


async def test_stopping_ends_what_waits_and_what_comes(bench):
    bench.script(a=lambda: FakeAnswer(asyncio.Event()))
    task = asyncio.create_task(bench.refused(said="replica of the router stops"))
    await asyncio.sleep(0.01)
    assert bench.it.limits.stop() == 1
    assert (await task).http_status == 503
    await bench.refused(said="replica of the router stops")
    assert bench.relay.asked == ["a"]


OUTCOMES = {
    "good": good,
    "error": lambda: FakeAnswer(b"{}", status=500),
    "busy": outcomes(VariantBusyError("full")),
    "down": outcomes(VariantDownError("no application")),
    "lost": outcomes(ReplicaLostError("lost")),
    "cut": lambda: FakeAnswer(UpstreamTruncatedError("gone")),
}


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=60),
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0]), min_size=1, max_size=10),
    st.integers(1, 40),
)
def test_whatever_variants_do_each_request_has_one_end_and_few_are_asked_again(
    script, gaps_s, n_requests
):
    """In any order of outcomes, many requests at once and over time."""

    async def run() -> None:
        bench, turn, free = Bench(), itertools.cycle(script), [0]
        retry = RetryConfig(budget_share=0.2, budget_min_per_s=0.5)
        bench.it.configure(ResilienceConfig(retry=retry, breaker=BreakerConfig(min_answers=5)))

        def answer() -> FakeAnswer:
            name = next(turn)
            free[0] += name == "busy"
            return OUTCOMES[name]()

        for name in "abc":
            bench.relay.scripts[name] = answer
        ends: list[object] = []
        for gap_s in gaps_s:
            bench.now_s += gap_s
            asked = [bench.ask(A_B_C) for _ in range(n_requests)]
            ends += await asyncio.gather(*asked, return_exceptions=True)
        kinds = {type(end) for end in ends}
        assert kinds <= {tuple, VariantUnavailableError}, kinds
        assert bench.relay.leftovers() == []
        n_retries = len(bench.metrics.retries)
        assert len(bench.relay.asked) <= len(ends) + n_retries + free[0]
        window_s = 12.0  # of the budget, and a fifth
        n_windows = 1 + sum(gaps_s) // window_s
        assert n_retries <= 0.2 * len(ends) * n_windows + 0.5 * 10 * (n_windows + 1)
        for name in "abc":
            states = [state for variant, state in bench.metrics.breakers if variant == name]
            assert all(before != after for before, after in itertools.pairwise(states))
            assert states[:1] in ([], ["open"])

    asyncio.run(run())


async def test_the_view(bench):
    assert bench.it.view() == {"draining": False, "retries_left": 100, "breakers": {}}
    bench.script(a=(ReplicaLostError("lost"), good()))
    await bench.ask()
    view = bench.it.view()
    assert view["retries_left"] == 99
    assert view["breakers"]["a"] == {"state": "closed", "retry_after_s": 0.0}
