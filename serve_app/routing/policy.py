"""The routing decision: pure, so that it can be tested, simulated and explained.

In this order: a pin; the cohort's split or everybody's, sticky where there is a session; the
precision ladder, which moves what the split gave to its best variant; the fallback order. The floor
of a cohort binds all but the pin: what a split gives below it goes to the floor itself.
"""

from collections.abc import Collection, Mapping

from serve_app.domain.errors import NotAllowedError, VariantUnavailableError
from serve_app.domain.traffic import AliasRules, Caller, RouteDecision, RouteReason
from serve_app.routing.fallback import with_stand_ins
from serve_app.routing.split import assign

_LADDER_KEY = "ladder\0"
"""Before the key of the ladder's draw, which must not depend on the split's."""


def decide(
    rules: AliasRules,
    caller: Caller,
    *,
    pin: str | None = None,
    ladder_bp: Mapping[str, int] | None = None,
    unavailable: Collection[str] = (),
) -> RouteDecision:
    """Choose a variant, and those that may stand in for it if it cannot take the request.

    `ladder_bp`: how the traffic of the ladder's best variant is spread over the rungs now; None:
    all stays. A pin is a promise and an explicit wish: it never falls back, and no rule moves it,
    the floor of the caller's cohort neither. Without a pin nothing below the floor is chosen, nor
    stands in.

    Raises VariantUnavailableError when nothing that may serve the request is available,
    NotAllowedError when its API key allows none of the variants at or above its floor.
    """
    if pin is not None:
        if pin in unavailable:
            raise VariantUnavailableError(
                f"variant {pin!r} is pinned by the request and not available now; "
                "retry, or name the model without a pin so that another variant can stand in"
            )
        return RouteDecision(pin, RouteReason.PINNED)
    chosen = _by_ladder(rules, caller, _by_split(rules, caller), ladder_bp)
    order = rules.split.fallback
    if forbidden := rules.below(_floor(caller)):
        order = tuple(name for name in order if name not in forbidden)
    return with_stand_ins(chosen, _allowed(caller, order), unavailable)


def _by_split(rules: AliasRules, caller: Caller) -> RouteDecision:
    if caller.cohort is not None and caller.cohort.shares_bp is not None:
        shares_bp, reason = caller.cohort.shares_bp, RouteReason.COHORT
    else:
        shares_bp = rules.split.shares_bp
        reason = RouteReason.STICKY if caller.session else RouteReason.WEIGHTED
    return RouteDecision(_assigned(rules, caller, shares_bp), reason)


def _by_ladder(
    rules: AliasRules, caller: Caller, chosen: RouteDecision, ladder_bp: Mapping[str, int] | None
) -> RouteDecision:
    if ladder_bp is None or not rules.rungs or chosen.variant != rules.rungs[0]:
        return chosen
    if caller.session and not rules.moves_sessions:
        return chosen
    within_bp = _down_to_floor(rules, caller, ladder_bp)
    rung = assign(_LADDER_KEY + (caller.session or caller.request_id), within_bp)
    if rung == chosen.variant or not _allowed(caller, (rung,)):
        return chosen
    return RouteDecision(rung, RouteReason.LADDER)


def _assigned(rules: AliasRules, caller: Caller, given_bp: Mapping[str, int]) -> str:
    """By the shares of those that may serve the caller; where none has any, they share equally."""
    key = caller.session or caller.request_id
    shares_bp = _down_to_floor(rules, caller, given_bp)
    if caller.variants is None:
        return assign(key, shares_bp)
    own = {name: shares_bp[name] for name in _allowed(caller, tuple(shares_bp))}
    if not own:
        floor, cohort = _floor(caller), caller.cohort
        bound = f" (the floor of cohort {cohort.name} is {floor})" if cohort and floor else ""
        raise NotAllowedError(
            f"the API key may use {', '.join(sorted(caller.variants))}, and this model is served "
            f"by {', '.join(shares_bp)}{bound}"
        )
    return assign(key, own if any(own.values()) else dict.fromkeys(own, 1))


def _down_to_floor(
    rules: AliasRules, caller: Caller, shares_bp: Mapping[str, int]
) -> Mapping[str, int]:
    """The shares with all that lies below the floor of the caller's cohort on the floor itself."""
    floor = _floor(caller)
    below = rules.below(floor)
    if floor is None or below.isdisjoint(shares_bp):
        return shares_bp
    kept = {name: share for name, share in shares_bp.items() if name not in below}
    kept[floor] = kept.get(floor, 0) + sum(shares_bp.get(name, 0) for name in below)
    return kept


def _floor(caller: Caller) -> str | None:
    return caller.cohort.floor if caller.cohort else None


def _allowed(caller: Caller, names: tuple[str, ...]) -> tuple[str, ...]:
    if caller.variants is None:
        return names
    return tuple(name for name in names if name in caller.variants)
