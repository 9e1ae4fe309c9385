"""Dominance and the front, on random evidence: some pairs decided, some not."""

import math
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.advise.contrasts import Interval, judge_gain, smaller_is_better, undecided
from serve_app.advise.evidence import MEMORY, QUALITY, Evidence, VariantEvidence, latency_at
from serve_app.advise.pareto import dominates, dominator, front, pareto_front

AXES = (QUALITY, MEMORY, latency_at("light"))
GAIN = st.integers(-4, 4).map(lambda tenths: tenths / 10)


def evidence_of(names, gains, margin=0.1):
    """Gains by axis and pair; None: not compared. An interval is the gain +- 0.05."""
    contrasts = {}
    for axis in AXES:
        found = []
        for pair in combinations(names, 2):
            gain = gains[axis, pair]
            if gain is None:
                found.append(undecided(*pair, margin, "not measured"))
            else:
                found.append(judge_gain(*pair, Interval(gain, gain - 0.05, gain + 0.05), margin))
        contrasts[axis] = tuple(found)
    variants = tuple(VariantEvidence(name) for name in names)
    return Evidence("m", names[0], variants, (), "E2E P95", contrasts)


@st.composite
def any_evidence(draw, least=1):
    """Pairs without rhyme or reason: not even an order."""
    names = [f"v{i}" for i in range(draw(st.integers(least, 6)))]
    gains = {
        (axis, pair): draw(st.none() | GAIN) for axis in AXES for pair in combinations(names, 2)
    }
    return evidence_of(names, gains)


@st.composite
def ordered_evidence(draw):
    """Each variant has a value on each axis, far enough from the others' to be told apart."""
    names = [f"v{i}" for i in range(draw(st.integers(2, 6)))]
    values = {axis: draw(st.permutations(range(len(names)))) for axis in AXES}
    gains = {
        (axis, (names[i], names[j])): (values[axis][i] - values[axis][j]) / 2
        for axis in AXES
        for i, j in combinations(range(len(names)), 2)
    }
    return evidence_of(names, gains), names, values


@given(any_evidence())
def test_nothing_dominates_itself_nor_what_dominates_it(evidence):
    for name in evidence.names:
        assert not dominates(evidence, name, name, AXES)
    for one, other in combinations(evidence.names, 2):
        assert not (dominates(evidence, one, other, AXES) and dominates(evidence, other, one, AXES))


@given(ordered_evidence())
def test_where_all_is_decided_dominance_is_transitive_and_the_front_is_the_textbook_one(made):
    evidence, names, values = made
    for a, b, c in permutations(names, 3) if len(names) > 2 else ():
        if dominates(evidence, a, b, AXES) and dominates(evidence, b, c, AXES):
            assert dominates(evidence, a, c, AXES)
    textbook = [
        name
        for i, name in enumerate(names)
        if not any(
            all(values[axis][j] > values[axis][i] for axis in AXES)
            for j in range(len(names))
            if j != i
        )
    ]
    assert list(pareto_front(evidence, names, AXES)) == textbook


@settings(max_examples=300)
@given(any_evidence())
def test_the_front_is_never_empty_and_each_that_is_off_it_is_dominated_from_it(evidence):
    kept = pareto_front(evidence, evidence.names, AXES)
    assert kept
    off = [name for name in evidence.names if name not in kept]
    assert all(dominator(evidence, name, kept, AXES) for name in off)


@settings(max_examples=300)
@given(any_evidence(least=2), st.data())
def test_a_variant_that_the_front_dominates_changes_nothing(evidence, data):
    kept = pareto_front(evidence, evidence.names, AXES)
    off = [name for name in evidence.names if name not in kept]
    if off:
        gone = data.draw(st.sampled_from(off))
        rest = [name for name in evidence.names if name != gone]
        assert pareto_front(evidence, rest, AXES) == kept


@given(any_evidence(), st.randoms())
def test_the_order_of_the_variants_does_not_matter(evidence, random):
    shuffled = list(evidence.names)
    random.shuffle(shuffled)
    found = pareto_front(evidence, shuffled, AXES)
    assert set(found) == set(pareto_front(evidence, evidence.names, AXES))


def test_dominance_in_a_circle_keeps_the_circle():
    beats = {("a", "b"), ("b", "c"), ("c", "a"), ("a", "d")}
    found = front(["a", "b", "c", "d"], lambda second, first: (first, second) in beats)
    assert found == ("a", "b", "c")


def test_an_axis_on_which_nothing_is_decided_protects():
    names = ["a", "b"]
    gains = {(QUALITY, ("a", "b")): 0.0, (MEMORY, ("a", "b")): 0.4, (AXES[2], ("a", "b")): 0.3}
    assert pareto_front(evidence_of(names, gains), names, AXES) == ("a",)
    unknown = gains | {(QUALITY, ("a", "b")): None}
    assert pareto_front(evidence_of(names, unknown), names, AXES) == ("a", "b")
    may_be_worse = gains | {(QUALITY, ("a", "b")): -0.1}  # from -0.15: beyond the margin
    assert pareto_front(evidence_of(names, may_be_worse), names, AXES) == ("a", "b")


def test_without_an_axis_all_stay():
    names = ["a", "b"]
    assert pareto_front(evidence_of(names, {(x, ("a", "b")): 0.4 for x in AXES}), names, ()) == (
        "a",
        "b",
    )


@pytest.mark.parametrize(
    ("gain", "p_value", "expected"),
    [
        (Interval(0.30, 0.20, 0.40), 0.01, "better"),
        (Interval(0.30, 0.20, 0.40), 0.06, "not worse"),  # of many comparisons one looks so
        (Interval(-0.30, -0.40, -0.20), 0.01, "worse"),
        (Interval(0.02, 0.01, 0.03), 0.001, "same"),  # sure, and too small to count
        (Interval(0.08, 0.01, 0.15), 0.001, "not worse"),  # less than the margin by the point
        (Interval(0.00, -0.30, 0.30), 0.9, "open"),
        (Interval(0.00, -0.05, 0.30), 0.9, "not worse"),
        (Interval(0.30, None, None), None, "open"),
        (Interval(0.30, 0.2, None), None, "better"),
    ],
)
def test_what_an_interval_decides(gain, p_value, expected):
    from serve_app.advise.explain import contrast_text

    found = judge_gain("a", "b", gain, 0.1, p_value=p_value)
    assert contrast_text(found) == expected
    opposite = {"better": "worse", "worse": "better", "not worse": "not better"}
    assert contrast_text(found.reversed()) == opposite.get(expected, expected)
    assert found.reversed().reversed() == found


def test_intervals_that_overlap_decide_nothing():
    found = smaller_is_better("a", "b", Interval(10, 9, 11), Interval(12, 10.5, 13), 0.01)
    assert not found.is_decided
    assert found.gain == pytest.approx(math.log(1.2))
    apart = smaller_is_better("a", "b", Interval(10, 9, 10.4), Interval(12, 10.5, 13), 0.01)
    assert apart.is_better
    open_end = smaller_is_better("a", "b", Interval(10, None, 11), Interval(12, None, 13), 0.01)
    assert not open_end.is_decided and open_end.low is None and open_end.high is None
    missing = smaller_is_better("a", "b", None, Interval(1.0), 0.01)
    assert missing.gain is None and "nothing is known of a" in missing.reason


@pytest.mark.parametrize(("one", "other"), [(0.0, 1.0), (1.0, 0.0), (math.inf, math.inf)])
def test_without_a_ratio_there_is_no_gain_of_zero(one, other):
    pair = Interval(one, one, one), Interval(other, other, other)
    found = smaller_is_better("a", "b", *pair, 0.01)
    assert found.gain is None and not found.is_decided and not found.is_not_worse
    assert "have no ratio" in found.reason
