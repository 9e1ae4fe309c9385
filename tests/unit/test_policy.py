"""Where a request goes, why, and who may stand in."""

import pytest

from serve_app.domain.errors import UnknownModelError, VariantUnavailableError
from serve_app.domain.traffic import RouteReason, TrafficSplit
from serve_app.routing.policy import decide, parse_model
from serve_app.routing.split import assign

SPLIT = TrafficSplit({"a": 5000, "b": 3000, "c": 2000, "pin-only": 0}, ("c", "b", "a"))


def decided(split=SPLIT, *, pin=None, session=None, request_id="r", unavailable=()):
    return decide(split, pin=pin, session=session, request_id=request_id, unavailable=unavailable)


def session_of(variant: str) -> str:
    numbers = map(str, range(1000))
    return next(key for key in numbers if assign(key, SPLIT.shares_bp) == variant)


def test_the_alias_leaves_the_choice_to_the_split():
    assert parse_model("org/model", "org/model", SPLIT) is None


@pytest.mark.parametrize("variant", ["a", "pin-only"])
def test_a_pin_names_a_variant(variant):
    assert parse_model(f"org/model@{variant}", "org/model", SPLIT) == variant


@pytest.mark.parametrize(
    "name", ["other", "m@", "m@z", "@a", "a", "m@a@b", "M", "other@a", "", "m@a ", "m@@a"]
)
def test_any_other_name_is_refused_with_the_names_that_are_served(name):
    with pytest.raises(UnknownModelError) as caught:
        parse_model(name, "m", SPLIT)
    assert repr(name) in str(caught.value)
    assert "m, m@a, m@b, m@c, m@pin-only" in str(caught.value)


def test_a_session_sticks_whatever_the_request_is():
    for variant in ("a", "b", "c"):
        session = session_of(variant)
        decisions = [decided(session=session, request_id=str(n)) for n in range(20)]
        assert {decision.variant for decision in decisions} == {variant}
        assert {decision.reason for decision in decisions} == {RouteReason.STICKY}


@pytest.mark.parametrize("session", [None, ""])
def test_without_a_session_requests_spread(session):
    decisions = [decided(session=session, request_id=str(n)) for n in range(100)]
    assert {decision.variant for decision in decisions} == {"a", "b", "c"}
    assert {decision.reason for decision in decisions} == {RouteReason.WEIGHTED}


def test_stand_ins_follow_the_declared_order_without_the_chosen_one_and_the_unavailable():
    decision = decided(session=session_of("b"), unavailable={"c"})
    assert (decision.variant, decision.reason) == ("b", RouteReason.STICKY)
    assert decision.stand_ins == ("a",)


def test_an_unavailable_choice_falls_back_in_the_declared_order():
    decision = decided(session=session_of("a"), unavailable=frozenset({"a"}))
    assert (decision.variant, decision.reason) == ("c", RouteReason.FALLBACK)
    assert decision.stand_ins == ("b",)


def test_a_variant_that_fallback_omits_never_stands_in():
    split = TrafficSplit({"a": 10_000, "b": 0, "c": 0}, ("b",))
    assert decided(split).stand_ins == ("b",)
    with pytest.raises(VariantUnavailableError) as caught:
        decided(split, unavailable={"a", "b"})
    assert "'a'" in str(caught.value) and "stand-in (b)" in str(caught.value)


def test_a_session_returns_to_its_variant_when_that_is_back():
    session = session_of("b")
    assert decided(session=session, unavailable={"b"}).variant == "c"
    assert decided(session=session).variant == "b"


def test_a_pin_is_a_promise():
    assert decided(pin="b", session=session_of("a")) == decided(pin="b")
    assert decided(pin="b").reason is RouteReason.PINNED
    assert decided(pin="b").stand_ins == ()
    with pytest.raises(VariantUnavailableError, match=r"pinned.*without a pin"):
        decided(pin="b", unavailable={"b"})


@pytest.mark.parametrize("fallback", [(), ("a", "b", "c")])
def test_all_down_is_an_error_that_says_so(fallback):
    split = TrafficSplit(SPLIT.shares_bp, fallback)
    with pytest.raises(VariantUnavailableError, match="no variant can take the request") as caught:
        decided(split, unavailable={"a", "b", "c", "pin-only"})
    assert caught.value.http_status == 503
    assert ("none declared" in str(caught.value)) is (fallback == ())
