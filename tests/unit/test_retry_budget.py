"""The retry budget: never more than its share and its floor, and never less either."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.routing.recent import RecentCounts
from serve_app.routing.retry_budget import BudgetRules, RetryBudget

RULES = st.builds(
    BudgetRules,
    share=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
    min_per_s=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    window_s=st.sampled_from([0.5, 1.0, 10.0]),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["request", "retry"]), st.floats(0, 3, allow_nan=False)), max_size=120
)


@given(RULES, STEPS)
def test_in_no_window_are_there_more_retries_than_the_budget_gives(rules, steps):
    budget, now_s = RetryBudget(rules), 100.0
    requests: list[float] = []
    retries: list[float] = []
    for step, gap_s in steps:
        now_s += gap_s
        if step == "request":
            budget.request(now_s)
            requests.append(now_s)
        elif budget.retry(now_s):
            retries.append(now_s)
            in_window = [at_s for at_s in retries if at_s > now_s - rules.window_s]
            # Whole slices expire: what counts is at most 1.2 windows old.
            counted = [at_s for at_s in requests if at_s >= now_s - 1.2 * rules.window_s - 1e-9]
            allowed = rules.share * len(counted) + rules.min_per_s * rules.window_s
            assert len(in_window) <= allowed + 1e-6


@given(RULES, st.integers(0, 200))
def test_all_of_the_budget_can_be_had_at_once(rules, n_requests):
    budget = RetryBudget(rules)
    for _ in range(n_requests):
        budget.request(5.0)
    granted = 0
    while budget.retry(5.0):
        granted += 1
    assert granted == int(rules.share * n_requests + rules.min_per_s * rules.window_s + 1e-9)
    assert budget.left(5.0) == 0


@given(RULES, st.integers(1, 200))
def test_spent_it_is_whole_again_after_a_window(rules, n_requests):
    budget = RetryBudget(rules)
    for _ in range(n_requests):
        budget.request(5.0)
    while budget.retry(5.0):
        pass
    later_s = 5.0 + 1.2 * rules.window_s
    assert budget.left(later_s) == int(rules.min_per_s * rules.window_s + 1e-9)


def test_without_a_share_and_a_floor_there_is_none():
    budget = RetryBudget(BudgetRules(share=0.0, min_per_s=0.0))
    for _ in range(1000):
        budget.request(1.0)
    assert not budget.retry(1.0)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=80))
def test_recent_counts_hold_a_window_and_never_more_than_a_fifth_besides(steps):
    window_s, now_s = 1.0, 0.0
    counts, seen = RecentCounts(window_s), []
    for gap_s, total, part in steps:
        now_s += gap_s
        counts.add(now_s, total, part)
        counts.forget(now_s)
        seen.append((now_s, total, part))
        for index, counted in ((1, counts.total), (2, counts.part)):
            least = sum(each[index] for each in seen if each[0] > now_s - window_s)
            most = sum(each[index] for each in seen if each[0] >= now_s - 1.2 * window_s - 1e-9)
            assert least <= counted <= most
    counts.clear()
    assert (counts.total, counts.part) == (0, 0)
