"""Which requests are mirrored, and when mirroring pauses."""

import pytest

from serve_app.routing.shadowing import Circuit, is_logged, is_mirrored
from serve_app.routing.split import assign

KEYS = [f"request-{i}" for i in range(20_000)]


@pytest.mark.parametrize("share_bp", [1, 100, 2500, 9999])
def test_the_share_is_kept(share_bp):
    n = sum(is_mirrored(key, share_bp) for key in KEYS)
    expected = len(KEYS) * share_bp / 10_000
    deviation = (expected * (1 - share_bp / 10_000)) ** 0.5
    assert abs(n - expected) <= 4 * deviation + 1


def test_nothing_and_everything_are_exact():
    assert not any(is_mirrored(key, 0) for key in KEYS)
    assert all(is_mirrored(key, 10_000) for key in KEYS)


def test_a_larger_share_mirrors_the_same_keys_and_more():
    small = {key for key in KEYS if is_mirrored(key, 500)}
    large = {key for key in KEYS if is_mirrored(key, 1500)}
    assert small < large


def test_every_variants_traffic_is_mirrored_alike():
    """Independent of the split: else a small variant might be mirrored whole, or never."""
    shares = {"a": 9000, "b": 1000}
    owners = {key: assign(key, shares) for key in KEYS}
    for name in shares:
        mine = [key for key in KEYS if owners[key] == name]
        n = sum(is_mirrored(key, 2000) for key in mine)
        deviation = (len(mine) * 0.2 * 0.8) ** 0.5
        assert abs(n - 0.2 * len(mine)) < 4 * deviation


def test_what_is_logged_is_independent_of_what_is_mirrored():
    mirrored = [key for key in KEYS if is_mirrored(key, 2000)]
    n = sum(is_logged(key, 2000) for key in mirrored)
    assert abs(n - 0.2 * len(mirrored)) < 4 * (len(mirrored) * 0.16) ** 0.5


def test_golden_choices():
    """Router replicas of two releases must agree: the hash may not change unnoticed."""
    assert [key for key in KEYS[:60] if is_mirrored(key, 1000)] == [
        "request-12",
        "request-34",
        "request-47",
        "request-57",
    ]


def test_odd_keys_have_their_choice_too():
    for key in ("", "\udcff", "x" * 100_000):
        assert is_mirrored(key, 5000) in (True, False)


def test_pauses_after_failures_in_a_row():
    circuit = Circuit(n_failures=3, pause_s=10)
    assert not circuit.failed(0)
    assert not circuit.failed(1)
    circuit.answered()
    assert [circuit.failed(t) for t in (2, 3, 4)] == [False, False, True]
    assert circuit.pause_left_s(4) == 10
    assert circuit.pause_left_s(13) == 1
    assert circuit.pause_left_s(14) == 0


def test_after_a_pause_one_failure_is_enough_and_one_answer_ends_it():
    circuit = Circuit(n_failures=3, pause_s=10)
    for t in (0, 0, 0):
        circuit.failed(t)
    assert circuit.failed(20)
    assert circuit.pause_left_s(20) == 10
    circuit.answered()
    assert circuit.pause_left_s(20) == 0
    assert not circuit.failed(21)


def test_stragglers_do_not_make_a_pause_longer():
    circuit = Circuit(n_failures=1, pause_s=10)
    assert circuit.failed(0)
    assert not circuit.failed(9)
    assert circuit.pause_left_s(9) == 1
