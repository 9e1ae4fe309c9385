"""Who stands in for a variant that cannot take a request."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from serve_app.domain.errors import VariantUnavailableError
from serve_app.domain.traffic import RouteDecision, RouteReason


def with_stand_ins(
    chosen: RouteDecision, order: Sequence[str], unavailable: Collection[str]
) -> RouteDecision:
    """The choice with its stand-ins, in the declared order; the first of them if it is unavailable.

    Raises VariantUnavailableError when neither it nor any stand-in is available.
    """
    others = tuple(name for name in order if name != chosen.variant and name not in unavailable)
    if chosen.variant not in unavailable:
        return replace(chosen, stand_ins=others)
    if others:
        return RouteDecision(others[0], RouteReason.FALLBACK, others[1:])
    raise VariantUnavailableError(
        f"no variant can take the request: {chosen.variant!r} is not available, and neither is any "
        f"stand-in ({', '.join(order) or 'none declared'})"
    )
