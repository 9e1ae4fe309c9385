"""The choice by each goal, on evidence made by hand."""

import math

import pytest

from serve_app.advise.candidates import Goal, Status, Terms
from serve_app.advise.choice import balance, choose
from serve_app.advise.evidence import AxisKind
from serve_app.advise.recommendation import recommend
from serve_app.domain.verdict import Verdict
from tests.fakes.evidence import GIB, Made, evidence

LEVELS = ("light", "heavy")
FAMILY = {
    "bf16": Made(0.0, {"light": 100, "heavy": 300}, 16, 1000, 1.00),
    "int8": Made(0.001, {"light": 80, "heavy": 180}, 8.5, 1500, 0.66),
    "awq": Made(0.008, {"light": 50, "heavy": 420}, 5.5, 700, 1.40),
}
"""4-bit weights win while memory bandwidth is the limit, and lose once compute is."""


def terms(goal=Goal.HIGHEST_QUALITY, levels=LEVELS, **more):
    return Terms(goal, levels, **more)


def replaced(name, **changes):
    return FAMILY | {name: FAMILY[name]._replace(**changes)}


def test_four_bits_win_at_light_load_and_lose_under_saturation():
    found = recommend(evidence(FAMILY), terms(Goal.CHEAPEST, quality_bar=0.02))
    light, heavy = found.rankings
    assert [(each.variant, each.place) for each in light.ranks] == [
        ("awq", 1), ("int8", 2), ("bf16", 3),
    ]  # fmt: skip
    assert [(each.variant, each.place) for each in heavy.ranks] == [
        ("int8", 1), ("bf16", 2), ("awq", 3),
    ]  # fmt: skip
    turns = {(each.first, each.second): each for each in found.crossings}
    assert set(turns) == {("bf16", "awq"), ("int8", "awq")}
    turn = turns["bf16", "awq"]
    assert (turn.faster_at, turn.slower_at) == ("heavy", "light")
    assert math.exp(turn.gain) == pytest.approx(1.4)
    assert math.exp(-turn.loss) == pytest.approx(2.0)
    assert any("no one order holds at every load" in text for text in found.remarks)
    assert found.chosen == "int8"
    front = {each.levels: each.variants for each in found.front_by_level}
    assert front["light",] == ("int8", "awq") and front["heavy",] == ("int8", "awq")
    assert found.front_by_level[1].dominated == {"bf16": "int8"}


def test_the_balance_at_each_load_level_alone_may_choose_otherwise():
    weights = {AxisKind.LATENCY: 1.0, AxisKind.QUALITY: 0.1}
    found = recommend(evidence(FAMILY), terms(Goal.BALANCED, weights=weights))
    assert [each.chosen for each in found.by_level] == ["awq", "int8"]
    assert "at light alone the choice would be awq" in found.remarks


def test_the_highest_quality_is_the_one_that_none_is_better_than():
    lossy = replaced("int8", loss=0.05)
    found = choose(evidence(lossy), terms())
    assert (found.verdict, found.chosen) == (Verdict.PASS, "bf16")
    assert found.equals == ("awq",)  # 0.8 % is within the margin, and awq is dearer


def test_among_equals_in_quality_what_is_cheaper_counts():
    found = choose(evidence(FAMILY), terms())
    assert found.chosen == "int8" and set(found.equals) == {"bf16", "awq"}


def test_the_cheapest_holds_the_bar():
    made = replaced("awq", usd=0.2)
    assert choose(evidence(made), terms(Goal.CHEAPEST, quality_bar=0.02)).chosen == "awq"
    found = choose(evidence(made), terms(Goal.CHEAPEST, quality_bar=0.005))
    assert found.chosen == "int8"
    out = next(each for each in found.standings if each.name == "awq")
    assert out.status is Status.OUT and "the bar is 0.50%" in out.reasons[0]


def test_memory_bounds_in_bytes_and_in_gpus():
    goal = terms(Goal.MEMORY_BOUND, max_bytes=6 * GIB)
    assert choose(evidence(FAMILY), goal).chosen == "awq"
    nothing = choose(evidence(FAMILY), terms(Goal.MEMORY_BOUND, max_bytes=GIB))
    assert (nothing.verdict, nothing.chosen) == (Verdict.FAIL, None)
    assert "needs 16.0 GiB, there are 1.00 GiB" in nothing.open_questions[0]
    assert choose(evidence(FAMILY), terms(Goal.MEMORY_BOUND, max_gpus=1)).verdict is Verdict.PASS


def test_the_balance_is_scale_free_and_declared():
    made = evidence(FAMILY)
    asked = terms(Goal.BALANCED, quality_bar=0.01)
    gain = balance(made, asked, "int8", "bf16")
    latency = (math.log(100 / 80) + math.log(300 / 180)) / 2
    expected = latency + math.log(16 / 8.5) + math.log(1 / 0.66) - 0.001 / 0.01 * math.log(2)
    assert gain.gain == pytest.approx(expected) and gain.is_better
    assert choose(made, asked).chosen == "int8"
    times_1000 = {
        name: each._replace(
            latency_ms={k: 1000 * v for k, v in each.latency_ms.items()}, usd=each.usd * 1000
        )
        for name, each in FAMILY.items()
    }
    assert balance(evidence(times_1000), asked, "int8", "bf16").gain == pytest.approx(gain.gain)


def test_a_bar_of_zero_allows_no_loss_and_divides_nothing():
    gains = {name: each._replace(loss=-0.01) for name, each in FAMILY.items() if name != "bf16"}
    made = evidence({"bf16": FAMILY["bf16"]} | gains)
    found = recommend(made, terms(Goal.BALANCED, quality_bar=0.0))
    assert found.chosen == "int8" and "the quality bar of 0.00%" in found.sentences[0]
    as_default = balance(made, terms(Goal.BALANCED), "int8", "bf16")
    assert balance(made, terms(Goal.BALANCED, quality_bar=0.0), "int8", "bf16") == as_default
    worse = choose(evidence(FAMILY), terms(Goal.CHEAPEST, quality_bar=0.0))
    assert {each.name: each.status for each in worse.standings}["awq"] is Status.OUT


def test_a_weight_of_zero_leaves_an_axis_out():
    only_memory = {AxisKind.MEMORY: 1.0}
    found = choose(evidence(FAMILY), terms(Goal.BALANCED, weights=only_memory))
    assert found.chosen == "awq"
    no_quality = {
        name: each._replace(verdict=Verdict.PASS, loss=None) for name, each in FAMILY.items()
    }
    assert choose(evidence(no_quality), terms(Goal.BALANCED, weights=only_memory)).chosen == "awq"
    assert choose(evidence(no_quality), terms(Goal.BALANCED)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.ERROR])
@pytest.mark.parametrize("goal", list(Goal))
def test_a_variant_that_failed_is_never_chosen(goal, verdict):
    """However good its numbers."""
    miracle = Made(-0.5, {"light": 1, "heavy": 1}, 0.1, 1e6, 0.001)
    for bad in (miracle._replace(verdict=verdict), miracle._replace(gate=verdict)):
        found = recommend(evidence(FAMILY | {"bad": bad}), terms(goal, max_bytes=20 * GIB))
        assert found.chosen != "bad" and "bad" not in found.variant_set
        if bad.verdict is not Verdict.ERROR:  # a broken evaluation says nothing of the variant
            assert "bad" not in found.front.variants


def test_a_broken_evaluation_leaves_the_variant_open():
    made = evidence(replaced("int8", verdict=Verdict.ERROR, usd=0.01))
    found = choose(made, terms(Goal.CHEAPEST))
    int8 = next(each for each in found.standings if each.name == "int8")
    assert int8.status is Status.UNKNOWN and int8.missing == ("evaluate int8 again",)
    assert (found.verdict, found.chosen) == (Verdict.INCONCLUSIVE, None)
    only = evidence({"bf16": FAMILY["bf16"]._replace(gate=Verdict.FAIL),
                     "int8": FAMILY["int8"]._replace(verdict=Verdict.ERROR)})  # fmt: skip
    assert choose(only, terms()).verdict is Verdict.INCONCLUSIVE


def test_all_that_fail_leave_nothing():
    made = {name: each._replace(slo=Verdict.FAIL) for name, each in FAMILY.items()}
    found = recommend(evidence(made), terms())
    assert (found.verdict, found.chosen, found.split_bp) == (Verdict.FAIL, None, None)
    assert "No variant qualifies" in found.sentences[0] and "misses the SLO" in found.sentences[0]


@pytest.mark.parametrize("goal", list(Goal))
def test_one_variant_alone_is_chosen_if_it_qualifies(goal):
    only = evidence({"bf16": FAMILY["bf16"]})
    found = recommend(only, terms(goal, max_bytes=20 * GIB))
    assert (found.chosen, found.variant_set) == ("bf16", ("bf16",))
    assert found.split_bp == {"bf16": 10_000}
    assert "the only variant" in found.sentences[0]


def test_quality_that_was_not_evaluated_keeps_it_open():
    made = evidence(replaced("int8", verdict=None, loss=None))
    found = choose(made, terms(Goal.CHEAPEST))
    assert found.verdict is Verdict.INCONCLUSIVE and found.chosen is None
    assert found.leader == "bf16"  # the cheapest of those that surely qualify
    assert "int8: its quality was not evaluated" in found.open_questions
    assert "evaluate int8: quantile eval" in found.next_steps


def test_what_could_not_win_keeps_nothing_open():
    dear = replaced("awq", verdict=None, loss=None)
    assert choose(evidence(dear), terms(Goal.CHEAPEST)).chosen == "int8"


def test_an_invalid_run_and_an_open_slo_keep_it_open():
    for slo, step in ((Verdict.ERROR, "again"), (Verdict.INCONCLUSIVE, "more blocks"),
                      (None, "`slo`")):  # fmt: skip
        found = choose(evidence(replaced("int8", slo=slo)), terms(Goal.CHEAPEST))
        assert found.verdict is Verdict.INCONCLUSIVE
        assert any(step in each for each in found.next_steps)


def test_a_level_that_was_not_measured_is_missing_and_not_zero():
    made = evidence(replaced("int8", latency_ms={"light": 80}))
    found = choose(made, terms(Goal.CHEAPEST))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert any("not measured at heavy" in each for each in found.open_questions)
    assert choose(made, terms(Goal.CHEAPEST, levels=("light",))).chosen == "int8"


def test_without_load_levels_a_variant_needs_a_capacity():
    """A search alone has no levels: who was not in it was not measured under load."""
    made = evidence(replaced("int8", tokens_per_s=None))
    found = choose(made, terms(levels=()))
    int8 = next(each for each in found.standings if each.name == "int8")
    assert int8.status is Status.UNKNOWN and "under load" in int8.reasons[0]
    assert int8.missing == ("run the campaign with int8, at rates that it holds",)
    assert found.chosen != "int8"
    assert choose(evidence(FAMILY), terms(levels=())).chosen == "int8"


def test_without_prices_the_cheapest_is_open_and_says_what_would_price():
    made = {name: each._replace(usd=None) for name, each in FAMILY.items()}
    found = choose(evidence(made), terms(Goal.CHEAPEST))
    assert found.verdict is Verdict.INCONCLUSIVE and found.next_steps == ("a price",)
    assert choose(evidence(made), terms()).verdict is Verdict.PASS  # others do not need it


def test_overlapping_intervals_keep_it_open_and_say_how_much_more_is_needed():
    close = replaced("bf16", loss=0.0) | {"int8": FAMILY["int8"]._replace(loss=0.02)}
    made = evidence({k: close[k] for k in ("bf16", "int8")}, loss_width=0.04)
    found = choose(made, terms())
    assert found.verdict is Verdict.INCONCLUSIVE and found.leader == "bf16"
    assert found.next_steps == (
        "more items in the evaluation (quantile eval), of bf16 and int8, about 4 times as many",
    )


def test_ties_are_broken_by_bytes_and_never_by_the_order():
    twins = {
        "a": Made(0.0, {"light": 100}, 8.02), "b": Made(0.0, {"light": 100}, 8.0),
        "c": Made(0.0, {"light": 100}, 8.04),
    }  # fmt: skip
    for order in (list(twins), list(reversed(twins))):
        found = choose(evidence({k: twins[k] for k in order}), terms(levels=("light",)))
        assert found.chosen == "b" and set(found.equals) == {"a", "c"}


def test_broken_evidence_is_an_error_whatever_the_numbers_say():
    found = recommend(evidence(FAMILY, broken=("the baseline answered nothing",)), terms())
    assert (found.verdict, found.chosen, found.variant_set) == (Verdict.ERROR, None, ())
    assert "the baseline answered nothing" in found.sentences[0]


def test_two_sentences_with_figures():
    made = recommend(evidence(FAMILY), terms(Goal.CHEAPEST, quality_bar=0.02))
    first, second = made.sentences
    assert first == (
        "Serve int8: of the 3 variants that hold the SLO at light and heavy and the quality bar "
        "of 2.00%, none is cheaper beyond the margin."
    )
    assert "99.90 % of the answers are right" in second
    assert "E2E P95 at heavy is 180 ms [171, 189] (0.60 [0.59, 0.61] of bf16)" in second
    assert "a replica takes 8.50 GiB (0.53 of bf16)" in second
    assert "0.66 USD" in second


def test_somebody_stands_in():
    made = recommend(evidence(FAMILY), terms(Goal.CHEAPEST))
    assert made.variant_set == ("int8", "bf16")
    assert made.split_bp == {"int8": 10_000, "bf16": 0}
