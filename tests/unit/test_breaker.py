"""The circuit breaker: when it opens, whom it lets through, and that it is never stuck."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.routing.breaker import Breaker, BreakerRules, BreakerState

RULES = BreakerRules(failures_in_a_row=3, min_answers=10, jitter=0.0)
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Clocked:
    """A breaker with a clock that the test moves, and the states it went through."""

    def __init__(self, rules: BreakerRules = RULES, draws: tuple[float, ...] = (0.5,)) -> None:
        self.states: list[BreakerState] = []
        numbers = itertools.cycle(draws)
        self.it = Breaker(rules, lambda: next(numbers), self.states.append)
        self.now_s = 1000.0

    def admit(self) -> int | None:
        return self.it.admit(self.now_s)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            permit = self.admit()
            assert permit is not None
            self.it.failed(permit, self.now_s)

    def serve(self, times: int = 1) -> None:
        for _ in range(times):
            permit = self.admit()
            assert permit is not None
            self.it.began(permit, self.now_s)
            self.it.ended(self.now_s)

    def opened(self) -> "Clocked":
        self.fail(self.it.rules.failures_in_a_row)
        assert self.it.state is OPEN
        return self

    def after(self, seconds: float) -> "Clocked":
        self.now_s += seconds
        return self


class TestOpening:
    def test_failures_in_a_row(self):
        breaker = Clocked()
        breaker.fail(2)
        assert breaker.it.state is CLOSED
        breaker.fail()
        assert breaker.states == [OPEN]
        assert breaker.admit() is None

    def test_a_whole_answer_ends_the_row(self):
        breaker = Clocked()
        for _ in range(3):
            breaker.fail(2)
            breaker.serve()
        assert breaker.states == []

    def test_an_answer_that_only_began_does_not(self):
        """A variant whose every stream breaks off has begun each of them."""
        breaker = Clocked()
        for _ in range(3):
            permit = breaker.admit()
            breaker.it.began(permit, breaker.now_s)
            breaker.it.ended(breaker.now_s, broke=True)
        assert breaker.states == [OPEN]

    def test_a_share_of_the_window_with_enough_answers_in_it(self):
        breaker = Clocked(replace(RULES, failures_in_a_row=100))
        breaker.fail(9)
        assert breaker.states == []
        breaker.fail()
        assert breaker.states == [OPEN]

    def test_below_the_share_it_stays_closed(self):
        breaker = Clocked(replace(RULES, failures_in_a_row=100))
        for _ in range(30):
            breaker.serve(2)
            breaker.fail()
        assert breaker.states == []

    def test_what_is_older_than_the_window_is_forgotten(self):
        breaker = Clocked(replace(RULES, failures_in_a_row=100))
        breaker.fail(9)
        breaker.after(12.0).fail()
        assert breaker.states == []

    def test_errors_of_its_own_count_in_the_share_and_not_in_the_row(self):
        """Five requests that crash the handler must not close the variant to all others."""
        breaker = Clocked()
        for _ in range(9):
            breaker.it.ended(breaker.now_s, error=True)
        assert breaker.states == []
        breaker.it.ended(breaker.now_s, error=True)
        assert breaker.states == [OPEN]

    def test_abandoned_attempts_say_nothing(self):
        breaker = Clocked()
        for _ in range(50):
            breaker.it.abandoned(breaker.admit())
        breaker.fail(2)
        assert breaker.states == []


class TestProbing:
    def test_one_probe_after_the_back_off_and_its_answer_closes(self):
        breaker = Clocked().opened()
        breaker.after(0.99)
        assert breaker.it.blocks(breaker.now_s) and breaker.admit() is None
        assert breaker.it.retry_after_s(breaker.now_s) == pytest.approx(0.01)
        breaker.after(0.02)
        assert not breaker.it.blocks(breaker.now_s)
        probe = breaker.admit()
        assert probe is not None and breaker.it.blocks(breaker.now_s)
        assert breaker.admit() is None
        assert breaker.it.retry_after_s(breaker.now_s) > 0
        breaker.it.began(probe, breaker.now_s)
        assert breaker.states == [OPEN, HALF_OPEN, CLOSED]
        assert breaker.it.retry_after_s(breaker.now_s) == 0

    @pytest.mark.parametrize("error", [False, True])
    def test_a_probe_that_fails_doubles_the_back_off_up_to_its_limit(self, error):
        breaker = Clocked().opened()
        for wait_s in (1, 2, 4, 8, 16, 30, 30, 30):
            breaker.after(wait_s - 0.01)
            assert breaker.admit() is None
            probe = breaker.after(0.02).admit()
            if error:
                breaker.it.began(probe, breaker.now_s, error=True)
            else:
                breaker.it.failed(probe, breaker.now_s)
            assert breaker.it.state is OPEN

    def test_a_relapse_within_a_window_doubles_too_and_a_later_one_does_not(self):
        breaker = Clocked().opened().after(1.01)
        breaker.serve()
        breaker.opened()
        assert breaker.it.retry_after_s(breaker.now_s) == pytest.approx(2.0)
        breaker.after(2.01).serve()
        breaker.after(RULES.window_s + 0.1).opened()
        assert breaker.it.retry_after_s(breaker.now_s) == pytest.approx(1.0)

    def test_a_probe_that_is_abandoned_makes_room_for_the_next(self):
        breaker = Clocked().opened().after(1.01)
        breaker.it.abandoned(breaker.admit())
        assert breaker.admit() is not None

    def test_a_probe_without_a_result_is_followed_by_another_and_counts_no_more(self):
        breaker = Clocked().opened().after(1.01)
        lost = breaker.admit()
        assert breaker.after(29.9).admit() is None
        probe = breaker.after(0.2).admit()
        assert probe is not None
        breaker.it.failed(lost, breaker.now_s)
        breaker.it.abandoned(lost)
        assert breaker.it.state is HALF_OPEN and breaker.admit() is None
        breaker.it.began(probe, breaker.now_s)
        assert breaker.it.state is CLOSED

    def test_what_was_asked_before_it_opened_changes_nothing(self):
        breaker = Clocked()
        old = breaker.admit()
        breaker.opened()
        breaker.it.began(old, breaker.now_s)
        breaker.it.ended(breaker.now_s)
        assert breaker.it.state is OPEN
        probe = breaker.after(1.01).admit()
        breaker.it.failed(old, breaker.now_s)
        assert breaker.it.state is HALF_OPEN
        breaker.it.began(probe, breaker.now_s)
        breaker.it.failed(old, breaker.now_s)
        breaker.fail(2)
        assert breaker.it.state is CLOSED

    def test_closed_again_it_counts_from_nothing(self):
        breaker = Clocked(replace(RULES, failures_in_a_row=12, min_answers=13)).opened()
        breaker.after(1.01).serve()
        breaker.fail(11)
        assert breaker.it.state is CLOSED

    @pytest.mark.parametrize(("draw", "wait_s"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
    def test_the_back_off_is_drawn_around_its_length(self, draw, wait_s):
        breaker = Clocked(replace(RULES, jitter=0.2), (draw,)).opened()
        assert breaker.it.retry_after_s(breaker.now_s) == pytest.approx(wait_s)


VERBS = st.sampled_from(["admit", "began", "error", "failed", "abandoned", "broke", "whole", "own"])
STEPS = st.lists(
    st.tuples(VERBS, st.integers(0, 5), st.sampled_from([0.0, 0.1, 0.5, 2.0, 40.0])), max_size=150
)


class TestWhateverHappens:
    @settings(max_examples=300)
    @given(STEPS, st.lists(st.floats(0, 1), min_size=1, max_size=5))
    def test_at_most_one_probe_at_a_time_and_none_while_open(self, steps, draws):
        breaker = Clocked(replace(RULES, jitter=0.2), tuple(draws))
        permits: list[int] = []
        probes: dict[int, float] = {}
        for verb, which, gap_s in steps:
            breaker.after(gap_s)
            permit = permits[-1 - which % len(permits)] if permits else -1
            if verb == "admit":
                was, blocked = breaker.it.state, breaker.it.blocks(breaker.now_s)
                given_permit = breaker.admit()
                assert (given_permit is None) == blocked
                if given_permit is not None:
                    permits.append(given_permit)
                    if was is not CLOSED:
                        limit_s = RULES.probe_limit_s
                        under_way = [
                            p for p, at_s in probes.items() if breaker.now_s < at_s + limit_s
                        ]
                        assert not under_way
                        probes[given_permit] = breaker.now_s
            elif verb in ("began", "error"):
                breaker.it.began(permit, breaker.now_s, error=verb == "error")
                probes.pop(permit, None)
            elif verb == "failed":
                breaker.it.failed(permit, breaker.now_s)
                probes.pop(permit, None)
            elif verb == "abandoned":
                breaker.it.abandoned(permit)
                probes.pop(permit, None)
            else:
                breaker.it.ended(breaker.now_s, broke=verb == "broke", error=verb == "own")

    @settings(max_examples=300)
    @given(STEPS, st.lists(st.floats(0, 1), min_size=1, max_size=5))
    def test_it_is_never_stuck(self, steps, draws):
        """Whatever came before: after its longest times, a probe passes, and its answer closes."""
        breaker = Clocked(replace(RULES, jitter=0.2), tuple(draws))
        permits: list[int] = [-1]
        for verb, which, gap_s in steps:
            breaker.after(gap_s)
            permit = permits[-1 - which % len(permits)]
            match verb:
                case "admit":
                    permits.append(breaker.admit() or permit)
                case "began" | "error":
                    breaker.it.began(permit, breaker.now_s, error=verb == "error")
                case "failed":
                    breaker.it.failed(permit, breaker.now_s)
                case "abandoned":
                    breaker.it.abandoned(permit)
                case _:
                    breaker.it.ended(breaker.now_s, broke=verb == "broke", error=verb == "own")
            assert breaker.it.retry_after_s(breaker.now_s) <= 1.2 * RULES.max_open_s
        breaker.after(max(1.2 * RULES.max_open_s, RULES.probe_limit_s))
        probe = breaker.admit()
        assert probe is not None
        breaker.it.began(probe, breaker.now_s)
        assert breaker.it.state is CLOSED
