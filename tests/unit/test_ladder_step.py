"""The controller: limits that latency teaches, shares that move by evidence, and come back."""

import json
from dataclasses import replace

import pytest

from serve_app.domain.errors import ConfigError
from serve_app.routing.ladder import (
    Gate,
    GateReadings,
    LadderRules,
    LadderState,
    is_missed,
    shares_for,
)
from serve_app.routing.ladder_step import erlang_loss, step

RULES = LadderRules(rungs=("bf16", "int8", "gptq"), ttft_p95_s=0.5)
CALM = GateReadings(window_s=10.0)
OVERLOADED = GateReadings(
    window_s=10.0, offered=200, evidence_s=8.0, evidence_offered=160, wanted=160, turned=80,
    turned_in_window=100, duration_s=2.0, peak_in_flight=10, in_flight=10,
)  # fmt: skip
"""Half of what reaches the gate is turned away, for four answers' time."""
SLOW = GateReadings(window_s=10.0, n_answers=40, n_deep=12, n_slow=6, slow_depth=9, worst=2.0)


def state(*gates, last="gptq"):
    return LadderState(gates, last)


def after(before, *readings, now_s=100.0, rules=RULES):
    return step(rules, before, readings, now_s)


def test_all_traffic_is_on_the_best_variant_at_first():
    start = LadderState.start(RULES, 5.0)
    assert shares_for(start) == {"bf16": 10_000, "int8": 0, "gptq": 0}
    assert (start.rung, start.rungs) == ("bf16", RULES.rungs)


def test_what_a_gate_does_not_keep_goes_one_rung_down():
    spread = state(Gate("bf16", 4000), Gate("int8", 5000))
    assert shares_for(spread) == {"bf16": 4000, "int8": 3000, "gptq": 3000}
    assert spread.rung == "gptq"


def test_nothing_goes_below_the_floor_and_what_would_stays_on_it():
    spread = state(Gate("bf16", 4000), Gate("int8", 5000))
    assert shares_for(spread, "int8") == {"bf16": 4000, "int8": 6000, "gptq": 0}
    assert shares_for(spread, "bf16") == {"bf16": 10_000, "int8": 0, "gptq": 0}
    assert shares_for(spread, "bf16", closed={0, 1})["bf16"] == 10_000
    with pytest.raises(ConfigError, match=r"awq.*is not a rung of the ladder: bf16, int8, gptq"):
        shares_for(spread, "awq")


def test_a_rung_at_its_limit_keeps_nothing_at_that_moment():
    full = state(Gate("bf16", 10_000), Gate("int8", 10_000))
    assert shares_for(full, closed={0}) == {"bf16": 0, "int8": 10_000, "gptq": 0}
    assert shares_for(full, closed={0, 1}) == {"bf16": 0, "int8": 0, "gptq": 10_000}
    assert shares_for(full, closed={1}) == {"bf16": 10_000, "int8": 0, "gptq": 0}


@pytest.mark.parametrize("keep", range(0, 10_001, 1111))
def test_shares_always_sum_to_the_whole(keep):
    spread = state(Gate("a", keep), Gate("b", 3333), Gate("c", 10_000 - keep), last="d")
    for floor in (None, "a", "b", "c", "d"):
        assert sum(shares_for(spread, floor).values()) == 10_000


def test_the_state_is_plain_json_and_the_step_is_a_function():
    before = state(Gate("bf16", limit=10), Gate("int8"))
    one, two = (after(before, OVERLOADED, CALM) for _ in range(2))
    assert one == two
    assert json.loads(json.dumps(one.as_json()))["shares_bp"] == shares_for(one)
    assert before.gates[0].keep_bp == 10_000


def test_a_calm_ladder_stays_where_it_is():
    start = LadderState.start(RULES, 0.0)
    for now_s in range(1, 100):
        moved = after(start, CALM, CALM, now_s=float(now_s))
        assert moved.gates == start.gates
        assert moved.changes == 0


def test_slow_answers_teach_the_depth_that_is_too_much():
    taught = after(state(Gate("bf16"), Gate("int8")), SLOW, CALM)
    assert taught.gates[0].limit == 8
    assert "6 of 12 answers at 9 in flight or more missed the SLO" in taught.reason
    # the rung below has taught nothing, and need not miss the SLO first
    assert taught.gates[1].limit == 8
    assert shares_for(taught) == {"bf16": 10_000, "int8": 0, "gptq": 0}


@pytest.mark.parametrize(
    ("n_slow", "n", "missed"),
    [(0, 0, False), (2, 2, False), (3, 3, True), (3, 20, False), (5, 100, False), (12, 100, True)],
)
def test_a_few_slow_answers_may_be_chance(n_slow, n, missed):
    assert is_missed(n_slow, n) is missed


def test_a_limit_that_is_still_too_much_shrinks_and_never_to_nothing():
    gate = Gate("bf16", limit=10)
    for _ in range(20):
        seen = replace(SLOW, slow_depth=gate.limit)
        gate = after(state(gate, Gate("int8")), seen, CALM).gates[0]
    assert gate.limit == 1
    # one surprise does not undo what was learned: at most two fifths at a time
    fallen = after(state(Gate("bf16", limit=50), Gate("int8")), SLOW, CALM).gates[0]
    assert fallen.limit == 30


def test_a_limit_grows_only_while_it_turns_away_and_answers_are_quick():
    gate = Gate("bf16", limit=20)
    quick = replace(CALM, n_answers=40, worst=0.5, turned_in_window=3)
    grown = after(state(gate, Gate("int8")), quick, CALM)
    assert grown.gates[0].limit == 22
    for seen in (
        replace(quick, worst=0.9),
        replace(quick, turned_in_window=0),
        replace(quick, n_answers=5),
        replace(quick, worst=None),
    ):
        assert after(state(gate, Gate("int8")), seen, CALM).gates[0].limit == 20
    assert after(state(gate, Gate("int8")), quick, CALM, now_s=5.0).gates[0].limit == 20


def test_a_limit_does_not_grow_to_a_depth_that_was_too_much_until_that_is_long_ago():
    taught = after(state(Gate("bf16", limit=9), Gate("int8")), SLOW, CALM).gates[0]
    quick = replace(CALM, n_answers=40, worst=0.5, turned_in_window=3)
    assert (taught.limit, taught.missed) == (7, 9)
    soon = after(state(taught, Gate("int8")), quick, CALM, now_s=115.0).gates[0]
    assert soon.limit == 8
    later = after(state(replace(soon), Gate("int8")), quick, CALM, now_s=130.0).gates[0]
    assert later.limit == 8
    much_later = after(state(later, Gate("int8")), quick, CALM, now_s=300.0).gates[0]
    assert much_later.limit == 9


def test_a_limit_never_grows_beyond_the_given_one():
    rules = replace(RULES, max_in_flight={"bf16": 10})
    start = LadderState.start(rules, 0.0)
    assert (start.gates[0].limit, start.gates[1].limit) == (10, None)
    quick = replace(CALM, n_answers=40, worst=0.1, turned_in_window=3)
    assert after(start, quick, CALM, rules=rules).gates[0].limit == 10


def test_erlangs_loss_is_that_of_the_tables():
    # 1, 2, 5, 10 servers offered as many erlangs: 1/2, 2/5, 0.2849, 0.2146
    expected = {1: 0.5, 2: 0.4, 5: 0.2849, 10: 0.2146}
    assert {n: round(erlang_loss(n), 4) for n in expected} == expected


def test_overload_moves_share_down_by_what_is_turned_away():
    before = state(Gate("bf16", limit=10), Gate("int8", limit=10))
    moved = after(before, OVERLOADED, CALM)
    # half is turned away: half is kept, and a little more, as chance turns some away too
    assert moved.gates[0].keep_bp == round(5000 * (1 + erlang_loss(10) / 2))
    assert moved.gates[1].keep_bp == 10_000
    assert moved.changes == 1
    assert "at its limit of 10" in moved.reason


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("chance turns that many away", {"turned": 40}),
        ("too few requests", {"wanted": 9, "turned": 9}),
        ("an engine just filled finishes nothing for an answer's time", {"evidence_s": 2.9}),
        ("no answer has ended yet", {"duration_s": None}),
    ],
)
def test_share_does_not_move_down_without_evidence(why, changes):
    before = state(Gate("bf16", limit=10), Gate("int8", limit=10))
    assert after(before, replace(OVERLOADED, **changes), CALM).changes == 0, why


def test_no_more_is_taken_from_a_rung_than_leaves_it_what_it_carries():
    carrying = Gate("bf16", limit=10, full_s=20.0, full_ended=300.0)  # 15 per second of 20
    moved = after(state(carrying, Gate("int8")), replace(OVERLOADED, turned=140), CALM)
    assert moved.gates[0].keep_bp == 7500


def test_one_move_takes_at_most_down_bp():
    moved = after(
        state(Gate("bf16", limit=10), Gate("int8")), replace(OVERLOADED, turned=160), CALM
    )
    assert moved.gates[0].keep_bp == 5000


def shed(keep_bp=4000, moved_at_s=80.0, **changes):
    """A gate that has shed, and knows by 400 ends in 40 s that it carries 10 per second."""
    facts = {"limit": 10, "full_s": 40.0, "full_ended": 400.0}
    return Gate("bf16", keep_bp, moved_at_s=moved_at_s, **facts | changes)


def test_share_comes_back_when_the_rate_leaves_room_and_not_before():
    still = replace(CALM, offered=200, peak_in_flight=10)  # 20 per second of 10
    assert after(state(shed(), Gate("int8")), still, CALM).gates[0].keep_bp == 4000
    less = replace(CALM, offered=70, peak_in_flight=9)  # 7 to 8.5 per second
    assert after(state(shed(), Gate("int8")), less, CALM).gates[0].keep_bp == 6500
    # at 9 per second of 10 all would fit, but not with the margin, nor with the doubt of a count
    near = replace(CALM, offered=90, peak_in_flight=10)
    moved = after(state(shed(8000), Gate("int8")), near, CALM)
    assert moved.gates[0].keep_bp == 8000


def test_share_comes_back_in_steps_with_a_pause_between_them():
    gate, less = shed(), replace(CALM, offered=30, peak_in_flight=5)
    seen = []
    for tick in range(400, 480):
        now_s = tick / 4
        gate = after(state(gate, Gate("int8")), less, CALM, now_s=now_s).gates[0]
        if not seen or seen[-1][1] != gate.keep_bp:
            seen.append((now_s, gate.keep_bp))
    assert seen == [(100.0, 6500), (104.0, 9000), (108.0, 10_000)]


def test_a_rung_of_unknown_capacity_comes_back_by_being_half_empty():
    unknown = shed(full_s=0.0, full_ended=0.0)
    half = replace(CALM, offered=100, peak_in_flight=5)
    assert after(state(unknown, Gate("int8")), half, CALM).gates[0].keep_bp == 6500
    more = replace(half, peak_in_flight=6)
    assert after(state(unknown, Gate("int8")), more, CALM).gates[0].keep_bp == 4000


def test_a_rung_that_carries_more_than_it_did_comes_back_until_it_is_half_full():
    """Its device was shared when it was full: 1 per second then, and 1 in flight for 4 now."""
    slower = shed(full_s=60.0, full_ended=60.0)
    seen = replace(
        CALM, offered=100, peak_in_flight=6, evidence_s=10.0, wanted=40, mean_in_flight=1.0
    )
    assert after(state(slower, Gate("int8")), seen, CALM).gates[0].keep_bp == 6500
    fuller = replace(seen, mean_in_flight=3.0)
    by_half = 4000 * 5 / (3.0 * (40 + 1.645 * 40**0.5 + 1) / 40)
    assert after(state(slower, Gate("int8")), fuller, CALM).gates[0].keep_bp == round(by_half)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("it is nearly half full as it is", {"mean_in_flight": 3.6}),
        ("as it would be, had it taken all that it was to keep", {"turned": 30}),
        ("an answer takes longer than it was looked at", {"duration_s": 11.0}),
        ("it has had nothing to do", {"wanted": 0.0, "mean_in_flight": 0.0}),
    ],
)
def test_a_rung_that_may_be_half_full_does_not(why, changes):
    slower = shed(full_s=60.0, full_ended=60.0)
    seen = replace(
        CALM, offered=100, peak_in_flight=6, evidence_s=10.0, wanted=40, mean_in_flight=1.0
    )
    assert after(state(slower, Gate("int8")), replace(seen, **changes), CALM).changes == 0, why


def test_the_best_rung_comes_back_first():
    lower = replace(shed(), variant="int8")
    idle, busy = replace(CALM, peak_in_flight=1), replace(CALM, offered=200, peak_in_flight=10)
    both = after(state(shed(), lower), idle, idle)
    assert [gate.keep_bp for gate in both.gates] == [6500, 4000]
    full = after(state(replace(shed(), keep_bp=10_000), lower), idle, idle)
    assert full.gates[1].keep_bp == 6500
    # while the best must stay down the one below does not swing, unless that helps a rung below
    assert after(state(shed(), lower), busy, idle).gates[1].keep_bp == 4000
    needed = replace(idle, below_misses=True)
    assert after(state(shed(), lower), busy, needed, now_s=99.0).gates[1].keep_bp == 4000
    assert after(state(shed(), lower), busy, needed, now_s=101.0).gates[1].keep_bp == 6500
    assert after(state(shed(), lower), busy, idle, now_s=141.0).gates[1].keep_bp == 6500


def test_capacity_is_known_only_of_a_rung_that_was_full_and_with_its_doubt():
    assert Gate("bf16", full_s=3.0, full_ended=7.0).capacity_per_s() is None
    gate = Gate("bf16", full_s=10.0, full_ended=100.0)
    assert gate.capacity_per_s() == 10.0
    assert gate.capacity_per_s(2.0) == 8.0
    full = replace(CALM, full_s=10.0, full_ended=50)
    for _ in range(100):  # it carries half as much now: what was before is forgotten
        gate = after(state(gate, Gate("int8")), full, CALM).gates[0]
    assert gate.capacity_per_s() == pytest.approx(5.0, rel=0.01)
