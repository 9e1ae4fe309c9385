"""The routing decision: pure, so that it can be tested, simulated and explained."""

from collections.abc import Collection

from serve_app.domain.errors import UnknownModelError, VariantUnavailableError
from serve_app.domain.traffic import RouteDecision, RouteReason, TrafficSplit
from serve_app.routing.split import assign

PIN_SEPARATOR = "@"


def parse_model(model: str, alias: str, split: TrafficSplit) -> str | None:
    """The variant that `model` pins, or None where the split decides.

    Raises UnknownModelError for any other name, listing the names that are served.
    """
    if model == alias:
        return None
    name, separator, variant = model.rpartition(PIN_SEPARATOR)
    if separator and name == alias and variant in split.shares_bp:
        return variant
    served = ", ".join([alias, *(f"{alias}{PIN_SEPARATOR}{name}" for name in split.variants)])
    raise UnknownModelError(f"model {model!r} is not served here; served: {served}")


def decide(
    split: TrafficSplit,
    *,
    pin: str | None,
    session: str | None,
    request_id: str,
    unavailable: Collection[str],
) -> RouteDecision:
    """Choose a variant, and those that may stand in for it if it cannot take the request.

    A pin is a promise: it never falls back. A session decides by itself; without one the request
    id does, so that anonymous traffic spreads by the shares. Variants known to be unavailable are
    passed over along the declared fallback order.

    Raises VariantUnavailableError when nothing that may serve the request is available.
    """
    if pin is not None:
        if pin in unavailable:
            raise VariantUnavailableError(
                f"variant {pin!r} is pinned by the request and not available now; "
                "retry, or name the model without a pin so that another variant can stand in"
            )
        return RouteDecision(pin, RouteReason.PINNED)
    chosen = assign(session or request_id, split.shares_bp)
    reason = RouteReason.STICKY if session else RouteReason.WEIGHTED
    others = tuple(name for name in split.fallback if name != chosen and name not in unavailable)
    if chosen not in unavailable:
        return RouteDecision(chosen, reason, others)
    if others:
        return RouteDecision(others[0], RouteReason.FALLBACK, others[1:])
    raise VariantUnavailableError(
        f"no variant can take the request: {chosen!r} is not available, and neither is any "
        f"stand-in ({', '.join(split.fallback) or 'none declared'})"
    )
