"""Shares, their intervals, and verdicts on an SLO."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from loadtests.analyse.attainment import fails_at_best, judge, requests_needed, share_of
from loadtests.analyse.nouns import Share, Verdict
from loadtests.analyse.verdict import campaign_verdict, worst


def of(n_met, n, n_cells=1):
    """`n_met` of `n` met, the misses spread evenly."""
    passes = [True] * n
    for i in range(n - n_met):
        passes[(i * n) // (n - n_met)] = False
    return share_of(np.array_split(passes, n_cells))


@pytest.mark.parametrize(("target", "smallest"), [(0.95, 72), (0.99, 368), (0.999, 3688)])
def test_without_a_miss_a_pass_needs_the_sample_from_which_a_two_sided_interval_exists(
    target, smallest
):
    assert judge(of(smallest, smallest), target)[0] is Verdict.PASS
    verdict, reason = judge(of(smallest - 1, smallest - 1), target)
    assert verdict is Verdict.INCONCLUSIVE
    assert f"need about {smallest} requests" in reason


def test_interval_is_scipys_where_misses_are_independent():
    share = of(290, 300)
    want = scipy_stats.binomtest(290, 300).proportion_ci(0.95, "exact")
    assert share.n_eff == 300
    assert (share.low, share.high) == pytest.approx((want.low, want.high))


def test_a_burst_of_misses_says_less_than_as_many_apart():
    burst = share_of([[True] * 290 + [False] * 10])
    assert burst.n_eff < 40
    assert burst.low < of(290, 300).low
    split = share_of([[True] * 290, [False] * 10])  # a whole cell that fails is a burst too
    assert split.n_eff < 40


def test_what_was_never_sent_counts_as_met_at_best():
    none_of_14 = share_of([[False] * 14])
    best = (14 * scipy_stats.beta.ppf(0.975, 1, 14) + 6) / 20
    assert fails_at_best(none_of_14, 6, best) is None
    assert "of 20 if the 6 others had" in fails_at_best(none_of_14, 6, best + 1e-6)
    assert fails_at_best(none_of_14, 0, 0.5) == judge(none_of_14, 0.5)[1]
    half = Share(k=0, n=10, low=0.0, high=0.5)
    assert fails_at_best(half, 10, 0.75) is None  # the target itself is met
    assert fails_at_best(share_of([]), 20, 0.99) is None
    assert fails_at_best(share_of([]), 0, 0.99) is None


def test_three_verdicts_and_their_reasons():
    assert judge(of(500, 500), 0.99) == (
        Verdict.PASS,
        "100% of 500 met it, interval [99.26%, 100%], target 99%",
    )
    assert judge(of(450, 500), 0.99)[0] is Verdict.FAIL
    verdict, reason = judge(of(296, 300), 0.99)
    assert verdict is Verdict.INCONCLUSIVE and "holds the target 99%: need about" in reason
    assert judge(of(99, 100), 0.99)[1].endswith("too near to decide")
    assert judge(share_of([]), 0.99) == (Verdict.INCONCLUSIVE, "no request was planned")
    assert judge(of(0, 6), 0.5)[0] is Verdict.FAIL
    assert judge(of(0, 1), 1.0)[0] is Verdict.FAIL  # one miss is a miss of 100 %
    assert judge(of(9, 9), 1.0)[0] is Verdict.INCONCLUSIVE  # and no number proves it


@given(st.integers(2, 400), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_so_many_requests_decide_and_fewer_do_not(n, seen, target):
    share = of(round(n * seen), n)
    need = requests_needed(share, target)
    is_decided = judge(share, target)[0] is not Verdict.INCONCLUSIVE
    if need is None:
        assert not is_decided
        return
    if share.n_eff == n:
        assert is_decided == (need <= n)
    at = Share(k=share.k * need, n=n * need, low=0, high=1, n_eff=n * need)
    assert requests_needed(at, target) == pytest.approx(need * share.n_eff / n, abs=2)


def test_dependent_requests_need_more_of_them():
    free, bound = (Share(k=980, n=1000, low=0, high=1, n_eff=n_eff) for n_eff in (1000, 250))
    assert requests_needed(bound, 0.99) == 4 * requests_needed(free, 0.99)


def test_the_verdict_errs_as_rarely_as_it_says():
    """A server exactly at its target: pass and fail together in 5 % of the runs at most."""
    rng = np.random.default_rng(1)
    wrong = [
        judge(share_of([(rng.random(800) < 0.95).tolist()]), 0.95)[0] is not Verdict.INCONCLUSIVE
        for _ in range(150)
    ]
    assert np.mean(wrong) <= 0.08


def test_the_verdict_errs_as_rarely_where_cells_differ():
    """Without the differences between cells 45 % of these runs would be decided."""
    rng = np.random.default_rng(2)
    limit = np.hypot(0.1, 0.3) * scipy_stats.norm.ppf(0.95)
    wrong = 0
    for _ in range(100):
        latencies = 0.1 * rng.normal(size=(6, 1)) + 0.3 * rng.normal(size=(6, 240))
        share = share_of((latencies <= limit).tolist())
        wrong += judge(share, 0.95)[0] is not Verdict.INCONCLUSIVE
    assert wrong <= 10


class Row:
    def __init__(self, stage, verdict):
        self.stage, self.slo_verdict = stage, verdict


class Found:
    def __init__(self, verdict):
        self.verdict = verdict


P, F, Q, X = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.INVALID


@pytest.mark.parametrize(
    ("rows", "searched", "is_valid", "is_partial", "want"),
    [
        ([P, P], [], True, False, P),
        ([P, Q], [], True, False, Q),
        ([P, Q, F], [], True, False, F),
        ([P, Q, F], [], False, False, X),
        ([P, P], [], False, True, X),
        ([P, P], [], True, True, Q),
        ([P, F], [], True, True, F),
        ([None, None], [], True, False, P),
        ([None], [], True, True, Q),
        ([], [], True, True, Q),
        ([F, F], [P, P], True, False, P),  # probes of a search are meant to fail
        ([F, F], [P, Q], True, False, Q),
        ([P, P], [F, X], True, False, X),  # the client fell short with one of them
        ([P, P], [P, X], True, True, X),
    ],
)
def test_verdict_of_a_campaign(rows, searched, is_valid, is_partial, want):
    summaries = [Row("s", each) for each in rows]
    saturation = [Found(each) for each in searched]
    assert campaign_verdict(summaries, saturation, {"s"}, is_valid, is_partial) is want


def test_only_gated_stages_count():
    rows = [Row("gated", P), Row("beyond", F)]
    assert campaign_verdict(rows, [], {"gated"}, True, False) is P
    assert campaign_verdict(rows, [], {"gated", "beyond"}, True, False) is F
    assert campaign_verdict(rows, [], (), True, False) is P
    assert worst([]) is P
