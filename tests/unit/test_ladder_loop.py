"""A router replica's ladder: what it counts, what it turns away, what it says of itself."""

import asyncio
import random
import timeit

import pytest

from serve_app.config.ladder import LadderConfig
from serve_app.domain.errors import ConfigError
from serve_app.domain.observation import Observation
from serve_app.domain.traffic import Caller, Cohort, RouteDecision, RouteReason
from serve_app.serving.ladder_loop import LadderLoop
from tests.fakes.metrics import RecordingLadderMetrics

LIMITED = LadderConfig(
    rungs=("bf16", "int8", "gptq"), max_in_flight={"bf16": 4, "int8": 6}, ttft_p95_ms=500
)
LEARNING = LadderConfig(rungs=("bf16", "int8", "gptq"), ttft_p95_ms=500, tpot_p95_ms=50)
ANYBODY = Caller("r")
BY_SPLIT = RouteDecision("bf16", RouteReason.WEIGHTED)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Bench:
    """A ladder whose clock is moved by hand."""

    def __init__(self, config=LIMITED):
        self.clock, self.metrics, self.rng = Clock(), RecordingLadderMetrics(), random.Random(1)
        self.loop = LadderLoop(self.clock, self.metrics, tick_s=None)
        self.loop.configure(config)

    def pass_s(self, seconds):
        for _ in range(round(seconds / 0.25)):
            self.clock.now_s += 0.25
            self.loop.tick()

    def answer(self, variant, *, ttft_s=0.05, took_s=1.0, tokens=10, status=200, whole=True):
        self.loop.ended(Observation(variant, status, ttft_s, took_s, tokens, whole), variant)

    def ask(self, caller=ANYBODY):
        """One request as the router has it, to a rung drawn by the shares."""
        shares = self.loop.shares_bp(caller.cohort.floor if caller.cohort else None)
        (variant,) = self.rng.choices(list(shares), list(shares.values()))
        reason = RouteReason.WEIGHTED if variant == "bf16" else RouteReason.LADDER
        self.loop.decided(RouteDecision(variant, reason), caller)
        self.loop.started(variant)
        return variant


def test_without_a_ladder_everything_does_nothing():
    loop = LadderLoop(Clock(), tick_s=None)
    loop.decided(BY_SPLIT, ANYBODY)
    loop.started("bf16")
    loop.first_byte("bf16", 0.1)
    loop.ended(None, "bf16")
    loop.tick()
    loop.close()
    assert (loop.shares_bp(), loop.view(), loop.moves_sessions) == (None, None, False)


def test_a_rung_at_its_limit_is_passed_by_at_once_and_open_again_at_once():
    bench = Bench()
    assert [bench.ask() for _ in range(4)] == ["bf16"] * 4
    assert [bench.ask() for _ in range(6)] == ["int8"] * 6
    assert bench.ask() == "gptq"
    bench.answer("bf16")
    assert bench.ask() == "bf16"
    assert bench.loop.view()["rungs"]["bf16"] | {"capacity_per_s": 0} == {
        "share_bp": 10_000, "in_flight": 4, "limit": 4, "at_limit": True, "capacity_per_s": 0,
        "ttft_p95_s": pytest.approx(0.05, rel=0.02), "tpot_p95_s": pytest.approx(0.1056, rel=0.02),
    }  # fmt: skip


def test_nobody_goes_below_the_floor_of_the_cohort_however_full_it_is():
    bench = Bench()
    paying = Caller("r", cohort=Cohort("paying", floor="int8"))
    assert {bench.ask(paying) for _ in range(50)} == {"bf16", "int8"}
    assert bench.loop.shares_bp("bf16") == {"bf16": 10_000, "int8": 0, "gptq": 0}
    with pytest.raises(ConfigError, match="is not a rung"):
        bench.loop.shares_bp("fp8")


def overload(bench, seconds, decision=None):
    """Ten requests a second, of which bf16 and int8 finish three and a third, and gptq all."""
    for tick in range(round(seconds * 10)):
        if decision is None:
            bench.ask()
        else:
            bench.loop.decided(decision, ANYBODY)
            bench.loop.started(decision.variant)
        bench.clock.now_s += 0.1
        bench.loop.tick()
        for name in ("bf16", "int8", "gptq"):
            is_due = name == "gptq" or tick % 3 == 0
            if is_due and bench.loop.view()["rungs"][name]["in_flight"]:
                bench.answer(name, took_s=0.8)


def test_lasting_overload_moves_share_and_calm_brings_it_back():
    bench = Bench()
    bench.pass_s(30)
    overload(bench, 30)
    view = bench.loop.view()
    assert view["rungs"]["bf16"]["share_bp"] < 7000
    assert any("bf16: at its limit of 4" in now.reason for _, now in bench.metrics.moves)
    assert bench.metrics.moves[-1][1].changes == view["changes"] > 0
    moves = [shares["bf16"] for shares in map(shares_of, bench.metrics.moves)]
    assert moves == sorted(moves, reverse=True)
    while bench.loop.view()["rungs"]["bf16"]["in_flight"]:
        bench.answer("bf16")
    bench.pass_s(60)
    assert bench.loop.view()["rungs"]["bf16"]["share_bp"] == 10_000
    assert bench.loop.view()["rung"] == "bf16"


def shares_of(move):
    return move[1].as_json()["shares_bp"]


@pytest.mark.parametrize(
    "decision",
    [
        RouteDecision("bf16", RouteReason.PINNED),
        RouteDecision("bf16", RouteReason.FALLBACK),
        RouteDecision("gptq", RouteReason.WEIGHTED),
    ],
)
def test_what_the_ladder_has_no_say_in_is_no_evidence(decision):
    bench = Bench()
    bench.pass_s(30)
    overload(bench, 30, decision)
    assert bench.loop.view()["changes"] == 0


def test_sessions_that_stay_are_no_evidence_and_those_that_move_are():
    for sessions, counts in (("stay", 0), ("move", 1)):
        bench = Bench(LIMITED.model_copy(update={"sessions": sessions}))
        assert bench.loop.moves_sessions is bool(counts)
        bench.loop.decided(RouteDecision("bf16", RouteReason.STICKY), Caller("r", session="s"))
        bench.loop.decided(BY_SPLIT, ANYBODY)
        bench.pass_s(0.25)
        assert bench.loop._readings[0].offered == 1 + counts


def test_slow_first_bytes_teach_a_limit_long_before_their_answers_end():
    bench = Bench(LEARNING)
    for _ in range(20):
        bench.loop.started("bf16")
    began_s = bench.clock.now_s
    bench.pass_s(0.75)
    for _ in range(6):
        bench.loop.first_byte("bf16", bench.clock.now_s - began_s)
    bench.pass_s(0.25)
    assert bench.loop.view()["rungs"]["bf16"]["limit"] == 19
    assert bench.loop.view()["rungs"]["int8"]["limit"] == 19
    assert bench.ask() == "int8"


def test_a_missed_tpot_is_held_against_the_depth_that_it_met_not_that_at_its_start():
    bench = Bench(LEARNING)
    bench.loop.started("bf16")  # alone at first, then with eleven others
    bench.clock.now_s += 0.1
    for _ in range(11):
        bench.loop.started("bf16")
    bench.clock.now_s += 0.9
    for _ in range(4):
        bench.answer("bf16", ttft_s=0.1, took_s=1.0, tokens=11)  # 90 ms per token
    bench.pass_s(0.25)
    assert bench.loop.view()["rungs"]["bf16"]["limit"] == 10


@pytest.mark.parametrize("bad", [{"status": 503}, {"status": 429}, {"whole": False}])
def test_refusals_and_broken_answers_are_not_timed_but_end(bad):
    bench = Bench(LEARNING)
    bench.loop.started("bf16")
    bench.answer("bf16", ttft_s=9.0, took_s=9.0, **bad)
    bench.loop.started("bf16")
    bench.loop.ended(None, "bf16")
    rung = bench.loop.view()["rungs"]["bf16"]
    assert (rung["in_flight"], rung["ttft_p95_s"]) == (0, None)


def test_answers_that_are_no_streams_take_up_room_and_teach_no_ttft_however_long_they_take():
    bench = Bench(LEARNING)
    for _ in range(40):
        bench.loop.started("bf16")
    assert bench.loop.view()["rungs"]["bf16"]["in_flight"] == 40
    bench.clock.now_s += 9.0
    for _ in range(40):
        bench.answer("bf16", ttft_s=None, took_s=9.0)
    bench.pass_s(0.25)
    rung = bench.loop.view()["rungs"]["bf16"]
    assert (rung["ttft_p95_s"], rung["tpot_p95_s"], rung["limit"]) == (None, None, None)
    assert (rung["in_flight"], rung["share_bp"]) == (0, 10_000)


def test_other_variants_and_surplus_ends_do_no_harm():
    bench = Bench()
    bench.loop.started("fp8")
    bench.answer("fp8")
    bench.loop.ended(None, "bf16")
    assert bench.loop.view()["rungs"]["bf16"]["in_flight"] == 0


def test_a_new_config_takes_over_what_is_in_flight_and_the_same_changes_nothing():
    bench = Bench()
    for _ in range(3):
        bench.ask()
    state = bench.loop.state
    bench.loop.configure(LIMITED.model_copy())
    assert bench.loop.state is state
    bench.loop.configure(LIMITED.model_copy(update={"max_in_flight": {"bf16": 3}}))
    assert bench.ask() == "int8"
    for _ in range(3):
        bench.answer("bf16")
    assert bench.loop.view()["rungs"]["bf16"]["in_flight"] == 0
    bench.loop.configure(None)
    assert bench.loop.shares_bp() is None
    bench.answer("bf16")


def test_its_own_task_ticks_until_it_is_closed_and_survives_a_failing_step(monkeypatch):
    async def live():
        loop = LadderLoop(asyncio.get_running_loop().time, tick_s=0.001)
        ticks = []

        def tick():
            ticks.append(1)
            if len(ticks) == 2:
                raise RuntimeError("a fault")

        monkeypatch.setattr(loop, "tick", tick)
        loop.configure(LIMITED)
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if len(ticks) >= 4:
                break
        assert len(ticks) >= 4
        loop.close()
        n_ticks = len(ticks)
        await asyncio.sleep(0.01)
        assert len(ticks) == n_ticks
        loop.configure(None)
        loop.configure(LIMITED)  # may be set again
        loop.close()

    asyncio.run(live())


def test_a_request_costs_microseconds():
    bench = Bench()

    def request():
        bench.loop.shares_bp()
        bench.loop.decided(BY_SPLIT, ANYBODY)
        bench.loop.started("bf16")
        bench.loop.first_byte("bf16", 0.05)
        bench.answer("bf16")

    best_s = min(timeit.repeat(request, number=200, repeat=20)) / 200
    assert best_s < 200e-6  # 12 on a quiet machine
