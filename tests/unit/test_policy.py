"""Where a request goes, why, and who may stand in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import (
    NotAllowedError,
    UnknownModelError,
    VariantUnavailableError,
)
from serve_app.domain.traffic import AliasRules, Caller, Cohort, RouteReason, TrafficSplit
from serve_app.routing.cohort import cohort_of
from serve_app.routing.pin import parse_model, served_names
from serve_app.routing.policy import decide
from serve_app.routing.split import assign

SPLIT = TrafficSplit({"a": 5000, "b": 3000, "c": 2000, "pin-only": 0}, ("c", "b", "a"))


RULES = AliasRules(SPLIT)


def decided(
    rules=RULES, *, session=None, request_id="r", cohort=None, pin=None, ladder=None, unavailable=()
):
    caller = Caller(request_id, session, cohort)
    return decide(rules, caller, pin=pin, ladder_bp=ladder, unavailable=unavailable)


def parsed(name, alias="m"):
    return parse_model(name, {alias: RULES})


def session_of(variant: str) -> str:
    numbers = map(str, range(1000))
    return next(key for key in numbers if assign(key, SPLIT.shares_bp) == variant)


def test_the_alias_leaves_the_choice_to_the_split():
    assert parsed("org/model", "org/model") == ("org/model", None)


@pytest.mark.parametrize("variant", ["a", "pin-only"])
def test_a_pin_names_a_variant(variant):
    assert parsed(f"org/model@{variant}", "org/model") == ("org/model", variant)


@pytest.mark.parametrize(
    "name", ["other", "m@", "m@z", "@a", "a", "m@a@b", "M", "other@a", "", "m@a ", "m@@a"]
)
def test_any_other_name_is_refused_with_the_names_that_are_served(name):
    with pytest.raises(UnknownModelError) as caught:
        parsed(name)
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
    assert decided(AliasRules(split)).stand_ins == ("b",)
    with pytest.raises(VariantUnavailableError) as caught:
        decided(AliasRules(split), unavailable={"a", "b"})
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
        decided(AliasRules(split), unavailable={"a", "b", "c", "pin-only"})
    assert caught.value.http_status == 503
    assert ("none declared" in str(caught.value)) is (fallback == ())


# Cohorts

GOLD = Cohort("gold", frozenset({"acme"}), {"x-tier": frozenset({"gold", "platinum"})}, floor="b")
TRIAL = Cohort("trial", headers={"x-tier": frozenset({"trial"})}, shares_bp={"c": 10_000})
COHORTS = (GOLD, TRIAL)


def cohort(*headers, **key):
    found = cohort_of(COHORTS, [(name.encode(), value.encode()) for name, value in headers], **key)
    return found and found.name


def test_a_cohort_is_found_by_key_or_by_header_and_the_first_rule_wins():
    assert cohort(("x-tier", "gold")) == "gold" and cohort(("x-tier", "trial")) == "trial"
    assert cohort(tenant="acme") == "gold" and cohort(key_cohort="trial") == "trial"
    assert cohort(("x-tier", "trial"), tenant="acme") == "gold"
    assert cohort() is cohort(("x-tier", "silver")) is cohort(tenant="other") is None
    assert cohort(("x-other", "gold"), key_cohort="silver") is None


def test_a_cohort_with_a_split_of_its_own_is_routed_by_it_and_may_fall_back():
    decision = decided(cohort=TRIAL, session=session_of("a"))
    assert (decision.variant, decision.reason) == ("c", RouteReason.COHORT)
    assert decided(cohort=TRIAL, unavailable={"c"}).variant == "b"


def test_a_cohort_without_a_split_shares_everybodys():
    everybodys = AliasRules(SPLIT, rungs=("a", "b"))
    session = session_of("b")
    assert decided(everybodys, cohort=GOLD, session=session) == decided(session=session)


# The ladder

LADDERED = TrafficSplit({"a": 9000, "b": 0, "c": 0, "new": 1000}, ("a", "b", "c"))
LADDER = AliasRules(LADDERED, COHORTS, rungs=("a", "b", "c"))
STAYS = AliasRules(LADDERED, rungs=LADDER.rungs, moves_sessions=False)
HALF = {"a": 5000, "b": 5000, "c": 0}


def many(rules, n=2000, **more):
    return [decided(rules, request_id=str(i), **more) for i in range(n)]


def test_the_ladder_moves_what_the_split_gave_to_the_best_variant_and_nothing_else():
    before = many(LADDER)
    after = many(LADDER, ladder=HALF)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old.variant for old, _ in moved} == {"a"}
    assert {(new.variant, new.reason) for _, new in moved} == {("b", RouteReason.LADDER)}
    assert 0.45 < len(moved) / sum(old.variant == "a" for old in before) < 0.55


def test_a_growing_share_of_a_rung_moves_no_request_back():
    first = many(LADDER, ladder={"a": 8000, "b": 2000, "c": 0})
    later = many(LADDER, ladder={"a": 6000, "b": 4000, "c": 0})
    on_b = [i for i, each in enumerate(first) if each.variant == "b"]
    assert on_b and all(later[i].variant == "b" for i in on_b)


def test_sessions_stay_where_the_rules_say_so():
    sessions = [str(n) for n in range(300)]
    stayed = [decided(STAYS, session=key, ladder={"a": 0, "b": 10_000}) for key in sessions]
    assert {each.variant for each in stayed} == {"a", "new"}
    moved = [decided(LADDER, session=key, ladder={"a": 0, "b": 10_000}) for key in sessions]
    assert {each.variant for each in moved} == {"b", "new"}
    assert {each.variant for each in many(STAYS, 300, ladder={"a": 0, "b": 10_000})} == {"b", "new"}


def test_nothing_below_a_cohorts_floor_stands_in():
    fixed = AliasRules(TrafficSplit({"a": 10_000, "b": 0, "c": 0}, ("c", "b")), rungs=LADDER.rungs)
    assert decided(fixed, unavailable={"a"}).variant == "c"
    assert decided(fixed, cohort=GOLD, unavailable={"a"}).variant == "b"
    assert decided(fixed, cohort=GOLD).stand_ins == ("b",)
    with pytest.raises(VariantUnavailableError, match=r"stand-in \(b\)"):
        decided(fixed, cohort=GOLD, unavailable={"a", "b"})


WIDE = AliasRules(TrafficSplit({"a": 3000, "b": 1000, "c": 4000, "new": 2000}), rungs=LADDER.rungs)


def test_what_the_split_gives_below_a_cohorts_floor_goes_to_the_floor_itself():
    sessions = [str(n) for n in range(4000)]
    golden = [decided(WIDE, cohort=GOLD, session=key) for key in sessions]
    assert golden == [decided(WIDE, cohort=GOLD, session=key, request_id="x") for key in sessions]
    shares = {name: sum(each.variant == name for each in golden) / 4000 for name in "abc"}
    assert shares["a"] == pytest.approx(0.3, abs=0.03)
    assert shares["b"] == pytest.approx(0.5, abs=0.03)
    assert shares["c"] == 0
    own = Cohort("own", shares_bp={"c": 10_000}, floor="b")
    assert decided(WIDE, cohort=own) == decided(WIDE, cohort=own, session="s")
    assert (decided(WIDE, cohort=own).variant, decided(WIDE, cohort=own).reason) == ("b", "cohort")


def test_the_share_of_a_floor_that_the_key_keeps_from_its_caller_goes_to_the_others_above_it():
    caller = Caller("r", "s", GOLD, frozenset({"a", "c"}))
    assert decide(WIDE, caller).variant == "a"
    with pytest.raises(NotAllowedError, match=r"floor of cohort gold is b") as caught:
        decide(WIDE, Caller("r", "s", GOLD, frozenset({"c"})))
    assert caught.value.http_status == 403


NAMES = ("r0", "r1", "r2", "r3", "canary")
RUNGS = NAMES[:4]


@st.composite
def spreads(draw, names):
    """Shares of some names that sum to 10,000."""
    parts = draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)).filter(any))
    shares = [10_000 * part // sum(parts) for part in parts]
    shares[parts.index(max(parts))] += 10_000 - sum(shares)
    return dict(zip(names, shares, strict=True))


@given(
    split=spreads(NAMES),
    own=st.none() | spreads(NAMES) | spreads(RUNGS[2:]),
    fallback=st.permutations(NAMES),
    ladder_bp=st.none() | spreads(RUNGS),
    floor=st.sampled_from(RUNGS),
    unavailable=st.frozensets(st.sampled_from(NAMES)),
    variants=st.none() | st.frozensets(st.sampled_from(NAMES), min_size=1),
    session=st.none() | st.text(max_size=3),
    moves_sessions=st.booleans(),
    key=st.text(max_size=3),
)
def test_no_unpinned_request_is_ever_decided_below_the_floor_of_its_cohort(
    split, own, fallback, ladder_bp, floor, unavailable, variants, session, moves_sessions, key
):
    cohort = Cohort("paying", shares_bp=own, floor=floor)
    rules = AliasRules(TrafficSplit(split, tuple(fallback)), (cohort,), RUNGS, moves_sessions)
    caller = Caller(key, session, cohort, variants)
    below = set(RUNGS[RUNGS.index(floor) + 1 :])
    try:
        decision = decide(rules, caller, ladder_bp=ladder_bp, unavailable=unavailable)
    except VariantUnavailableError:
        assert unavailable
        return
    except NotAllowedError:
        assert variants is not None
        assert not variants & (set(own or split) | {floor}) - below
        return
    named = {decision.variant, *decision.stand_ins}
    assert not named & below
    assert not named & unavailable
    assert variants is None or named <= variants
    assert decide(rules, caller, ladder_bp=ladder_bp, unavailable=unavailable) == decision


def test_a_pin_is_not_moved_by_cohort_or_ladder_nor_is_it_bound_by_the_floor():
    decision = decided(LADDER, pin="c", cohort=GOLD, ladder={"a": 0, "b": 10_000})
    assert (decision.variant, decision.reason) == ("c", RouteReason.PINNED)


# Several aliases


def test_each_alias_has_its_own_pins():
    aliases = {"big": RULES, "small@x": AliasRules(TrafficSplit({"z": 10_000}))}
    assert parse_model("small@x", aliases) == ("small@x", None)
    assert parse_model("small@x@z", aliases) == ("small@x", "z")
    assert parse_model("big@a", aliases) == ("big", "a")
    with pytest.raises(UnknownModelError):
        parse_model("big@z", aliases)
    assert served_names(aliases)[-2:] == ["small@x", "small@x@z"]


def test_a_name_of_a_megabyte_is_not_repeated_to_whoever_sent_it():
    with pytest.raises(UnknownModelError) as caught:
        parsed("x" * 1_000_000)
    assert len(str(caught.value)) < 500
