"""Buckets, budgets and turns: the pure core of admission."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.routing.admission import (
    DAY_S,
    Account,
    Bucket,
    DayBudget,
    Limits,
    Reason,
    estimate_need,
)
from serve_app.routing.fair_queue import FairQueue, Turn

gaps = st.floats(0, 100, allow_nan=False)
amounts = st.floats(0, 20, allow_nan=False)


@given(
    rate=st.floats(0.01, 100),
    capacity=st.floats(1, 50),
    steps=st.lists(st.tuples(gaps, amounts), max_size=25),
)
def test_a_bucket_never_gives_more_than_rate_times_time_and_burst(rate, capacity, steps):
    bucket, now_s, taken = Bucket(rate, capacity, 0.0), 0.0, []
    for gap_s, amount in steps:
        now_s += gap_s
        if amount <= capacity and not bucket.wait_s(amount, now_s):
            bucket.take(amount, now_s)
            taken.append((now_s, amount))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            window_s = taken[last][0] - taken[first][0]
            total = sum(amount for _, amount in taken[first : last + 1])
            assert total <= (rate * window_s + capacity) * (1 + 1e-6) + 1e-6


@given(
    rate=st.floats(0.01, 100),
    capacity=st.floats(1, 50),
    spent=st.floats(0, 200),
    amount=st.floats(0.1, 50),
)
def test_who_waits_as_long_as_told_is_served_and_not_much_earlier(rate, capacity, spent, amount):
    amount = min(amount, capacity)
    bucket = Bucket(rate, capacity, 0.0)
    bucket.take(spent, 0.0)
    wait_s = bucket.wait_s(amount, 0.0)
    if wait_s > 0.01:
        assert bucket.wait_s(amount, wait_s * 0.9) > 0
    assert bucket.wait_s(amount, wait_s * (1 + 1e-9)) == pytest.approx(0, abs=1e-6)


def test_a_clock_that_goes_back_gives_nothing():
    bucket = Bucket(1.0, 10.0, 100.0)
    bucket.take(10.0, 100.0)
    assert bucket.level(50.0) == 0
    assert bucket.level(101.0) == 1


def account(now_s=0.0, offset_s=0.0, **limits) -> Account:
    return Account(Limits(**limits), now_s, offset_s)


def test_a_request_over_its_rate_hears_when_to_come_again():
    tenant = account(requests_per_minute=60, burst=2)
    assert tenant.reserve(0, 0.0) is None
    assert tenant.reserve(0, 0.0) is None
    refusal = tenant.reserve(0, 0.25)
    assert refusal is not None
    assert (refusal.reason, refusal.retry_after_s) == (Reason.REQUEST_RATE, 0.75)
    assert tenant.reserve(0, 1.0) is None


def test_tokens_are_reserved_then_settled():
    tenant = account(tokens_per_minute=600)
    assert tenant.reserve(500, 0.0) is None
    refusal = tenant.reserve(200, 0.0)
    assert refusal is not None
    assert (refusal.reason, refusal.retry_after_s) == (Reason.TOKEN_RATE, 10.0)
    tenant.settle(500, 100, 0.0)  # the answer was shorter than it might have been
    assert tenant.reserve(200, 0.0) is None
    tenant.settle(200, 2000, 0.0)  # and this one longer: a debt
    assert tenant.tokens_left(0.0) == (600, 0.0, pytest.approx(210.0))
    refusal = tenant.reserve(0, 0.0)
    assert refusal is not None, "a debt admits nothing, whatever is asked for"
    assert refusal.retry_after_s == pytest.approx(150.1)


def test_what_is_larger_than_the_budget_never_fits():
    for limits in ({"tokens_per_minute": 100}, {"tokens_per_day": 100}):
        refusal = account(**limits).reserve(101, 0.0)
        assert refusal is not None
        assert (refusal.reason, refusal.retry_after_s) == (Reason.TOO_LARGE, None)


def test_the_day_ends_at_midnight_utc():
    tenant = account(now_s=10.0, offset_s=DAY_S - 100.0, tokens_per_day=100)
    assert tenant.reserve(100, 10.0) is None
    refusal = tenant.reserve(1, 20.0)
    assert refusal is not None
    assert (refusal.reason, refusal.retry_after_s) == (Reason.TOKEN_QUOTA, 80.0)
    assert tenant.reserve(100, 100.0) is None


def test_tokens_given_back_the_next_day_are_no_bonus():
    budget = DayBudget(100)
    budget.take(80, DAY_S - 1.0)
    budget.take(-80, DAY_S + 1.0)
    assert budget.left(DAY_S + 1.0) == 100


def test_the_longest_reason_is_told():
    tenant = account(requests_per_minute=60, burst=1, tokens_per_minute=60)
    tenant.reserve(60, 0.0)
    refusal = tenant.reserve(30, 0.0)
    assert refusal is not None
    assert (refusal.reason, refusal.retry_after_s) == (Reason.TOKEN_RATE, 30.0)


def test_a_refused_request_takes_nothing():
    tenant = account(requests_per_minute=60, burst=5, tokens_per_minute=100)
    tenant.reserve(90, 0.0)
    before = tenant.requests_left(0.0)
    assert tenant.reserve(50, 0.0) is not None
    assert tenant.requests_left(0.0) == before
    tenant.cancel(90, 0.0)
    assert tenant.requests_left(0.0) == (60, 5.0, 0.0)
    assert tenant.tokens_left(0.0) == (100, 100.0, 0.0)


def test_a_reload_gives_nobody_a_fresh_budget():
    tenant = account(requests_per_minute=60, burst=10, tokens_per_day=100)
    for _ in range(10):
        tenant.reserve(10, 0.0)
    tenant.resize(Limits(requests_per_minute=120, burst=20, tokens_per_day=150), 0.0)
    assert tenant.requests_left(0.0) == (120, 0.0, 10.0)
    refusal = tenant.reserve(60, 5.0)
    assert refusal is not None
    assert refusal.have == 50


@given(
    body_bytes=st.integers(0, 10_000),
    max_tokens=st.none() | st.integers(-5, 5000),
    n=st.none() | st.integers(-2, 8),
)
def test_a_need_is_never_below_what_was_asked_for(body_bytes, max_tokens, n):
    need = estimate_need(body_bytes, max_tokens, n, assumed_tokens=512)
    assert need.prompt == math.ceil(body_bytes / 4)
    asked = 512 if max_tokens is None or max_tokens < 0 else max_tokens
    assert need.completion == asked * (n if n is not None and n > 0 else 1)


class Turns(RuleBasedStateMachine):
    """Any order of arrivals, ends, departures and changes of limits."""

    def __init__(self) -> None:
        super().__init__()
        self.limit: int | None = 3
        self.room = 4
        self.own: dict[str, int | None] = {"a": None, "b": 2, "c": 1}
        self.queue = FairQueue(self.limit, self.room)
        self.served: list[object] = []
        self.waiting: list[object] = []
        self.was_above = False

    def _served_now(self, waiters):
        for waiter in waiters:
            assert waiter.turn is Turn.SERVED
            self.waiting.remove(waiter)
            self.served.append(waiter)

    @rule(tenant=st.sampled_from("abc"))
    def arrive(self, tenant):
        line = self.queue.line(tenant, self.own[tenant])
        if self.queue.enter(line):
            self.served.append(line)
            return
        own_before = len(line.waiters)
        longest = max((len(w.line.waiters) for w in self.waiting), default=0)
        waiter, displaced = self.queue.wait(line)
        if waiter is None:
            assert len(self.waiting) >= self.room
            assert longest <= own_before + 1, "it had less than another, and was turned away"
            return
        self.waiting.append(waiter)
        if displaced is not None:
            assert displaced.turn is Turn.DISPLACED
            assert longest > own_before + 1, "it would only trade places"
            self.waiting.remove(displaced)

    @precondition(lambda self: self.served)
    @rule(data=st.data())
    def end(self, data):
        one = data.draw(st.sampled_from(self.served))
        self.served.remove(one)
        self._served_now(self.queue.leave(getattr(one, "line", one)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data):
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self._served_now(self.queue.give_up(waiter))

    @precondition(lambda self: any(hasattr(one, "line") for one in self.served))
    @rule(data=st.data())
    def cancelled_when_just_served(self, data):
        waiter = data.draw(st.sampled_from([one for one in self.served if hasattr(one, "line")]))
        self.served.remove(waiter)
        self._served_now(self.queue.give_up(waiter))
        assert self.queue.give_up(waiter) == [], "a place is given back once"

    @rule(limit=st.none() | st.integers(1, 5), room=st.integers(0, 5), own=st.integers(1, 4))
    def resize(self, limit, room, own):
        self.limit, self.room, self.own = limit, room, {**self.own, "b": own}
        self._served_now(self.queue.resize(limit, room, self.own))

    @invariant()
    def counts_agree(self):
        assert self.queue.n_served == len(self.served)
        assert self.queue.n_waiting == len(self.waiting)
        assert all(waiter.turn is Turn.WAITING for waiter in self.waiting)

    @invariant()
    def nobody_waits_who_could_be_served(self):
        if self.limit is None or len(self.served) < self.limit:
            assert not [w for w in self.waiting if w.line.is_below_limit]

    @invariant()
    def nothing_is_kept_of_who_has_left(self):
        if not self.served and not self.waiting:
            assert not self.queue._lines
        assert len(self.queue._turns) <= len(self.own)


TestTurns = Turns.TestCase
TestTurns.settings = hypothesis_settings(max_examples=60, stateful_step_count=40)


@given(
    limit=st.integers(1, 4),
    own=st.integers(1, 3),
    events=st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=80),
)
def test_never_more_at_once_than_the_limits(limit, own, events):
    queue, served = FairQueue(limit, 10), []
    for tenant, ends in events:
        if ends and served:
            line = served.pop(0)
            served += [waiter.line for waiter in queue.leave(line)]
        else:
            line = queue.line(tenant, own)
            if queue.enter(line):
                served.append(line)
            else:
                queue.wait(line)
        assert len(served) == queue.n_served <= limit
        for name in "ab":
            assert sum(line.tenant == name for line in served) <= own


def served_order(queue, line):
    """Who is served, place after place, as each ends at once."""
    order = []
    served = queue.leave(line)
    while served:
        order += [waiter.line.tenant for waiter in served]
        served = queue.leave(served[0].line)
    return order


def test_a_tenant_with_one_request_waits_one_turn_and_not_a_hundred():
    queue = FairQueue(1, 200)
    first = queue.line("greedy", None)
    assert queue.enter(first)
    for _ in range(100):
        queue.wait(queue.line("greedy", None))
    late = queue.line("modest", None)
    assert queue.n_before(late) == 1
    queue.wait(late)
    queue.wait(queue.line("third", None))
    order = served_order(queue, first)
    assert order[:3] == ["greedy", "modest", "third"]
    assert len(order) == 102


def test_equal_tenants_take_turns():
    queue = FairQueue(1, 100)
    first = queue.line("a", None)
    queue.enter(first)
    for tenant in "aaabbbccc":
        queue.wait(queue.line(tenant, None))
    assert "".join(served_order(queue, first)) == "abcabcabc"


def test_a_tenant_at_its_own_limit_holds_nobody_up():
    queue = FairQueue(2, 100)
    a, b = queue.line("a", 1), queue.line("b", None)
    assert queue.enter(a)
    assert queue.enter(b)
    waits, _ = queue.wait(a)
    also, _ = queue.wait(b)
    assert queue.leave(b) == [also], "the place is b's: a may not have another"
    assert queue.leave(a) == [waits]


def test_the_room_is_shared_too():
    queue = FairQueue(1, 4)
    line = queue.line("greedy", None)
    queue.enter(line)
    waiters = [queue.wait(line)[0] for _ in range(4)]
    assert queue.wait(line) == (None, None)
    modest = queue.line("modest", None)
    assert queue.wait(modest)[1] is waiters[3], "the newest of the longest line"
    assert queue.wait(modest)[1] is waiters[2]
    assert queue.wait(modest) == (None, None), "both have two of the four now"


def test_lines_as_long_as_the_newcomers_stay():
    queue = FairQueue(1, 5)
    a, b = queue.line("a", None), queue.line("b", None)
    queue.enter(a)
    for line in (a, a, a, b, b):
        queue.wait(line)
    assert queue.wait(b) == (None, None), "three and two: the other would be the shorter one next"


def test_clients_that_come_and_leave_while_nothing_ends_leave_nothing_behind():
    queue = FairQueue(1, 10)
    first = queue.line("a", None)
    queue.enter(first)
    for _ in range(1000):
        waiter, _ = queue.wait(queue.line("b", None))
        queue.give_up(waiter)
    assert len(queue._turns) == 1
    assert queue.leave(first) == []
    assert not queue._turns
    assert not queue._lines
