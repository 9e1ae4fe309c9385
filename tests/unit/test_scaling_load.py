"""One variant's wish: up fast, down slowly, never swinging, to sleep when idle."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import ConfigError
from serve_app.scaling.load import Memory, Observation, Targets, wish

TARGETS = Targets(
    ongoing_per_replica=8, upscale_delay_s=2, downscale_delay_s=30, idle_s=60, slack=0.8
)


def seen(now_s: float = 0, **changes) -> Observation:
    facts = {"replicas": 1, "target": 1, "minimum": 0, "maximum": 8, "ongoing": 0.0}
    return Observation(now_s=now_s, **{**facts, **changes})


class Variant:
    """An engine pool of known capacity under a load; the wish is carried out at once."""

    def __init__(self, targets=TARGETS, *, capacity=1e9, kv_per_request=0.0, **first) -> None:
        self.targets, self.capacity, self.kv_per_request = targets, capacity, kv_per_request
        self.memory = Memory()
        self.facts = {"replicas": 1, "target": 1, "minimum": 0, "maximum": 8, **first}
        self.now_s, self.served = 0.0, 0
        self.reason = ""

    def run(self, ongoing: float, seconds: int) -> list[int]:
        """Replicas after each second."""
        course = []
        for _ in range(seconds):
            self.now_s += 1
            self.served += ongoing > 0
            n = self.facts["replicas"]
            running = min(ongoing, self.capacity * n)
            observed = Observation(
                now_s=self.now_s,
                ongoing=ongoing,
                reporting=n,
                running=running if n else None,
                waiting=ongoing - running if n else None,
                kv_use=min(1.0, running * self.kv_per_request / n) if n else None,
                served_total=self.served if n else None,
                **self.facts,
            )
            wished, self.memory = wish(observed, self.targets, self.memory)
            self.reason = wished.reason
            self.facts["replicas"] = self.facts["target"] = wished.replicas
            course.append(wished.replicas)
        return course


def test_up_after_its_delay_and_all_at_once():
    assert Variant().run(30, 5) == [1, 1, 4, 4, 4]


def test_a_peak_shorter_than_the_delay_starts_nothing():
    variant = Variant()
    assert variant.run(30, 2) + variant.run(4, 3) + variant.run(30, 2) == [1] * 7


def test_down_one_replica_per_delay():
    variant = Variant(replicas=4, target=4)
    course = variant.run(1, 95)
    assert [course.index(n) for n in (3, 2, 1)] == [30, 60, 90]


def test_a_replica_is_given_up_only_if_the_load_fits_the_others_with_room_to_spare():
    assert set(Variant(replicas=2, target=2).run(0.8 * 8, 100)) == {2, 1}
    assert set(Variant(replicas=2, target=2).run(0.8 * 8 + 0.1, 100)) == {2}


def test_a_full_kv_cache_asks_for_more_where_requests_do_not():
    variant = Variant(kv_per_request=0.25)
    assert variant.run(4, 4)[-1] == 2
    assert variant.reason.startswith("KV cache")


def test_engines_that_hold_requests_back_teach_how_many_they_hold():
    variant = Variant(capacity=3)
    assert variant.run(9, 4)[-1] == 3
    assert "engine limit" in variant.reason
    assert set(variant.run(9, 300)) == {3}, "what was learnt is not forgotten when it helped"


def test_an_engine_that_holds_more_than_was_learnt_is_believed():
    variant = Variant(capacity=3)
    variant.run(9, 4)
    variant.capacity = 8  # shorter prompts
    variant.run(24, 3)
    assert set(variant.run(24, 100)[-30:]) == {3}


def test_idle_goes_to_sleep_and_a_request_wakes():
    variant = Variant()
    course = variant.run(1, 1) + variant.run(0, 60)
    assert course.index(0) == 60
    assert variant.reason == "idle for 60 s"
    assert variant.run(1, 1) == [1]
    assert set(variant.run(1, 10) + variant.run(0, 59)) == {1}


def test_requests_too_short_for_a_gauge_keep_it_awake():
    """A request of 100 ms once a minute is almost never running when the gauge is read."""
    memory, course = Memory(), []
    for now_s in range(0, 600, 5):
        observed = seen(now_s, running=0, waiting=0, served_total=now_s // 50)
        wished, memory = wish(observed, TARGETS, memory)
        course.append(wished.replicas)
    assert set(course) == {1}


def test_without_reports_nobody_counts_as_idle():
    memory = Memory()
    for now_s in range(0, 1000, 10):
        wished, memory = wish(seen(now_s), TARGETS, memory)
    assert wished.replicas == 1


def test_a_variant_with_a_minimum_never_sleeps():
    assert set(Variant(minimum=1).run(0, 200)) == {1}


def test_while_it_starts_the_target_stands_and_a_start_that_nobody_waits_for_is_given_up():
    memory = Memory()
    course = []
    for now_s in range(0, 80, 10):
        wished, memory = wish(seen(now_s, replicas=0, target=2), TARGETS, memory)
        course.append(wished.replicas)
    assert course == [2] * 6 + [0] * 2


def test_asleep_stays_asleep():
    wished, _ = wish(seen(replicas=0, target=0), TARGETS, Memory())
    assert (wished.replicas, wished.reason) == (0, "asleep")


@pytest.mark.parametrize(
    "wrong", [{"slack": 0}, {"kv_use_limit": 1.1}, {"idle_s": -1}, {"ongoing_per_replica": 0}]
)
def test_targets_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(TARGETS, **wrong)


variants = st.builds(
    Variant,
    st.builds(
        Targets,
        ongoing_per_replica=st.floats(0.5, 50),
        kv_use_limit=st.floats(0.3, 1),
        slack=st.floats(0.3, 1),
        upscale_delay_s=st.just(2.0),
        downscale_delay_s=st.just(5.0),
        idle_s=st.just(10.0),
    ),
    capacity=st.floats(1, 60),
    kv_per_request=st.floats(0, 0.5),
    minimum=st.integers(0, 2),
    replicas=st.shared(st.integers(1, 8), key="replicas"),
    target=st.shared(st.integers(1, 8), key="replicas"),
)


@given(variants, st.floats(0, 400))
def test_a_constant_load_comes_to_rest(variant, ongoing):
    if variant.facts["minimum"] > variant.facts["replicas"]:
        return
    variant.run(ongoing, 120)
    assert len(set(variant.run(ongoing, 60))) == 1


@given(variants, st.lists(st.tuples(st.floats(0, 400), st.integers(1, 20)), max_size=8))
def test_the_wish_stays_within_its_bounds(variant, course):
    replicas = list(itertools.chain(*(variant.run(load, seconds) for load, seconds in course)))
    assert all(variant.facts["minimum"] <= n <= 8 for n in replicas)


@given(st.floats(0, 200), st.floats(0, 200), st.integers(1, 8))
def test_more_load_never_asks_for_less(low, high, replicas):
    low, high = sorted((low, high))
    now = replace(TARGETS, upscale_delay_s=0, downscale_delay_s=0)
    wishes = [
        wish(seen(replicas=replicas, target=replicas, ongoing=load), now, Memory())[0].replicas
        for load in (low, high)
    ]
    assert wishes[0] <= wishes[1]


def test_a_replica_that_has_not_reported_yet_is_not_taken_for_an_empty_one():
    """One engine full at 16, a second that serves and is silent: no third is due."""
    facts = {"replicas": 2, "target": 2, "maximum": 4, "served_total": 1}
    fast = Targets(ongoing_per_replica=16, upscale_delay_s=0)
    half = seen(1, ongoing=24.0, reporting=1, running=16.0, waiting=8.0, kv_use=0.92, **facts)
    wished, memory = wish(half, fast, Memory(capacity=16.0))
    assert (wished.replicas, memory.capacity) == (2, 16.0)
    spread = seen(2, ongoing=24.0, reporting=2, running=24.0, waiting=0.0, kv_use=0.5, **facts)
    assert wish(spread, fast, memory)[0].replicas == 2
