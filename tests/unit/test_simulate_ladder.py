"""The ladder's promise, over curves that were measured on real engines (decision 0015), simulated.

A burst of twice what the best variant carries: at least ten times fewer SLO violations than with
all traffic on it, mean expected quality within 1 % of the best possible for those violations, and
one turn per burst. The ladder here begins knowing nothing of the engines.
"""

from pathlib import Path

import pytest

from serve_app.config.ladder import LadderConfig
from serve_app.simulate.curves import ServiceCurve
from serve_app.simulate.measured import read_curves
from serve_app.simulate.study import Question, answer, capacity_per_s
from serve_app.simulate.trace import Tokens, burst, draw

EXAMPLE = Path(__file__).parents[2] / "serve_app" / "simulate" / "example"
CURVES = tuple(read_curves(EXAMPLE / "curves.yaml"))
RUNGS = ("baseline", "rtn-bfloat16", "gguf-q4-k-m")
QUALITY = dict(zip(RUNGS, (1.0, 0.985, 0.97), strict=True))
TOKENS = Tokens(16, 64)
CONFIG = LadderConfig(rungs=RUNGS, ttft_p95_ms=500)


def asked(shape, seed, config=CONFIG, replicas=2, n_routers=1, quality=QUALITY, **changes):
    n = dict.fromkeys(RUNGS, replicas)
    capacity = capacity_per_s(CURVES, config, TOKENS.mean, n)[RUNGS[0]]
    trace = draw(burst(shape, capacity, 2.0, 0.5, 60.0), TOKENS, seed)
    return answer(Question(config, CURVES, quality, trace, n, n_routers=n_routers, **changes))


def bursts(shape):
    return 2 if shape == "two" else 1


def holds(found, shape, times=10.0, loss=0.01):
    assert found.gain >= times, (found.fixed.n_violations, found.ladder.n_violations)
    assert found.ladder.quality >= (1 - loss) * found.bound
    if found.hindsight is not None:
        assert found.ladder.quality >= (1 - loss) * found.hindsight.quality
    assert found.ladder.turns <= bursts(shape)


@pytest.mark.parametrize("shape", ["square", "ramp", "two"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_burst_of_twice_the_capacity(shape, seed):
    found = asked(shape, seed)
    holds(found, shape)
    assert found.fixed.violation_share > 0.7  # without a ladder the burst is a catastrophe
    assert found.ladder.turns == bursts(shape)
    assert found.played.shares[-1][1][RUNGS[0]] == 10_000  # and all is back in the end


@pytest.mark.parametrize("shape", ["square", "ramp", "two"])
def test_the_same_on_curves_of_a_campaign_on_vllm_engines(shape):
    curves = tuple(read_curves(EXAMPLE / "reference.yaml"))
    rungs = ("baseline", "int8", "gptq")
    config = LadderConfig(rungs=rungs, ttft_p95_ms=250)
    capacity = capacity_per_s(curves, config, TOKENS.mean, {})["baseline"]
    trace = draw(burst(shape, capacity, 2.0, 0.5, 60.0), TOKENS, 7)
    quality = dict(zip(rungs, (1.0, 0.998, 0.985), strict=True))
    holds(answer(Question(config, curves, quality, trace, {})), shape)


@pytest.mark.parametrize("n_routers", [2, 4])
def test_router_replicas_that_know_nothing_of_each_other(n_routers):
    found = asked("square", 1, replicas=4, n_routers=n_routers)
    holds(found, "square")


def test_the_share_of_the_best_is_near_the_best_possible_and_not_only_its_quality():
    """With a cheap variant that were worth nothing, quality would be the share of the others."""
    worthless = dict(zip(RUNGS, (1.0, 1.0, 0.0), strict=True))
    found = asked("square", 2, replicas=4, quality=worthless)
    assert found.ladder.quality >= 0.85 * found.bound
    assert found.hindsight is not None
    assert found.ladder.quality >= 0.9 * found.hindsight.quality


def test_a_tpot_is_held_as_well():
    config = LadderConfig(rungs=RUNGS, ttft_p95_ms=1000, tpot_p95_ms=70)
    holds(asked("ramp", 2, config), "ramp")


def test_limits_from_a_campaign_save_what_learning_costs():
    known = {"baseline": 16, "rtn-bfloat16": 16}
    config = CONFIG.model_copy(update={"max_in_flight": known})
    found, learnt = asked("square", 1, config), asked("square", 1)
    holds(found, "square", times=20.0)
    assert found.ladder.n_violations < learnt.ladder.n_violations


def test_while_the_slo_holds_all_traffic_stays_on_the_best():
    n = dict.fromkeys(RUNGS, 2)
    capacity = capacity_per_s(CURVES, CONFIG, TOKENS.mean, n)[RUNGS[0]]
    trace = draw(burst("square", capacity, 0.6, 0.5, 120.0), TOKENS, 4)
    found = answer(Question(CONFIG, CURVES, QUALITY, trace, n))
    assert found.ladder.served == {RUNGS[0]: len(trace)}
    assert (found.ladder.turns, found.view["changes"]) == (0, 0)


def test_on_one_device_a_variant_that_is_no_faster_cannot_help():
    """At batch 8 the cheap variants of these curves are slower; who shares a device should know."""
    found = asked("square", 1, shares_device=True, replicas=1)
    assert found.gain < 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_one_device_cheaper_variants_help_and_the_best_comes_back_to_what_it_carries_alone(seed):
    """While the rungs share the device the best carries a quarter of what it does by itself: what
    it was seen to carry in the burst must not keep its share down once the burst is over."""
    curves = (
        ServiceCurve("bf16", ((1, 0.0032), (2, 0.0034)), 0.003, 2),
        ServiceCurve("int8", ((1, 0.0034), (4, 0.0044), (16, 0.0074)), 0.003, 16),
        ServiceCurve("q4", ((1, 0.0004), (4, 0.0012), (16, 0.004)), 0.001, 16),
    )
    config = LadderConfig(rungs=("bf16", "int8", "q4"), ttft_p95_ms=600)
    tokens = Tokens(48, 80)
    capacity = capacity_per_s(curves, config, tokens.mean, {})["bf16"]
    trace = draw(burst("square", capacity, 2.0, 0.5, 40.0), tokens, seed)
    quality = {"bf16": 1.0, "int8": 0.996, "q4": 0.994}
    found = answer(Question(config, curves, quality, trace, {}, shares_device=True))
    assert found.gain >= 10
    assert found.ladder.turns == 1
    shares = [shares_bp["bf16"] for _, shares_bp in found.played.shares]
    assert min(shares) < 4000
    assert shares[-1] == 10_000


def test_the_same_question_has_the_same_answer():
    one, two = (asked("square", 5).as_json() for _ in range(2))
    assert one == two
