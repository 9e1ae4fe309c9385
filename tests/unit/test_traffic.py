"""A wrong split is refused with what is needed, what is there, and what to change."""

import pytest

from serve_app.domain.errors import ConfigError
from serve_app.domain.traffic import TrafficSplit


@pytest.mark.parametrize(
    ("shares_bp", "fallback", "said"),
    [
        ({"a": 4000, "b": 5000}, (), ["10000", "have 9000", "a 4000, b 5000", "by +1000"]),
        ({"a": 9000, "b": 2000}, (), ["have 11000", "by -1000"]),
        ({}, (), ["have 0", "by +10000"]),
        ({"a": 11000, "b": -1000}, (), ["at least 0", "b -1000"]),
        ({"a": 10000}, ("a", "c"), ["fallback names c", "known: a", "share of 0 is allowed"]),
        ({"a": 10000, "b": 0}, ("b", "a", "b"), ["twice", "b, a, b"]),
    ],
    ids=["too little", "too much", "empty", "negative", "unknown stand-in", "stand-in twice"],
)
def test_what_is_wrong_and_what_to_change(shares_bp, fallback, said):
    with pytest.raises(ConfigError) as caught:
        TrafficSplit(shares_bp, fallback)
    for part in said:
        assert part in str(caught.value)


def test_a_share_of_zero_can_be_named_but_does_not_serve():
    split = TrafficSplit({"a": 0, "b": 10_000})
    assert split.variants == ("a", "b")
    assert split.serving == ("b",)
