"""What share of traffic each variant gets, and what was decided for one request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.domain.errors import ConfigError
from serve_app.domain.units import BP_TOTAL


class RouteReason(StrEnum):
    """Why a request went where it went; travels in `x-route-reason`."""

    PINNED = "pinned"
    """The caller named the variant: `<model>@<variant>`."""
    STICKY = "sticky"
    """The split chose, keyed by the caller's session: the same session gets the same variant."""
    WEIGHTED = "weighted"
    """The split chose, keyed by the request: the caller named no session."""
    COHORT = "cohort"
    """The split of the caller's cohort chose, in place of everybody's."""
    LADDER = "ladder"
    """The split chose the best variant; the precision ladder moved the request to a cheaper one."""
    FALLBACK = "fallback"
    """The chosen variant could not take the request; the next in the declared order did."""
    REJECTED = "rejected"
    """No variant served it: the request itself was at fault, or none could take it."""
    LOCAL = "local"
    """The router answered from its own knowledge (`/v1/models`, `/readyz`, ...)."""


@dataclass(frozen=True)
class TrafficSplit:
    """Shares of the traffic in basis points, and the order in which variants stand in.

    `shares_bp` maps every variant that can be named to its share; a share of 0 keeps a variant
    reachable by its pin alone. Shares sum to 10,000. `fallback` lists variants by preference; those
    it omits never stand in for another.
    """

    shares_bp: Mapping[str, int]
    fallback: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        total = sum(self.shares_bp.values())
        if total != BP_TOTAL:
            raise ConfigError(
                f"shares must sum to {BP_TOTAL} basis points, have {total} "
                f"({_listing(self.shares_bp)}); change one share by {BP_TOTAL - total:+d}"
            )
        negative = {name: share for name, share in self.shares_bp.items() if share < 0}
        if negative:
            raise ConfigError(f"a share must be at least 0 basis points, have {_listing(negative)}")
        unknown = [name for name in self.fallback if name not in self.shares_bp]
        if unknown:
            raise ConfigError(
                f"fallback names {', '.join(unknown)}, which the split does not list; "
                f"known: {', '.join(self.shares_bp)} (a share of 0 is allowed)"
            )
        if len(set(self.fallback)) != len(self.fallback):
            raise ConfigError(f"fallback names a variant twice: {', '.join(self.fallback)}")

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that can be named, in the order of the configuration."""
        return tuple(self.shares_bp)

    @property
    def serving(self) -> tuple[str, ...]:
        """The variants with a share above 0."""
        return tuple(name for name, share in self.shares_bp.items() if share)


@dataclass(frozen=True)
class Cohort:
    """Callers who are routed by a rule of their own, and how.

    A caller belongs to it by API key (its tenant is listed, or its key's own cohort has this name)
    or by a header with one of the values that are listed; `headers` has lower-case names.
    """

    name: str
    tenants: frozenset[str] = frozenset()
    headers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    shares_bp: Mapping[str, int] | None = None
    """Its own split; None: everybody's."""
    floor: str | None = None
    """The cheapest rung of the ladder that may serve it; None: any."""


@dataclass(frozen=True)
class AliasRules:
    """How requests for one public model name are routed."""

    split: TrafficSplit
    cohorts: tuple[Cohort, ...] = ()
    rungs: tuple[str, ...] = ()
    """The precision ladder's variants from best quality to cheapest; empty: there is none."""
    moves_sessions: bool = True
    """Whether the ladder may move requests that name a session."""

    def below(self, floor: str | None) -> frozenset[str]:
        """The rungs that are cheaper than `floor`."""
        return frozenset(self.rungs[self.rungs.index(floor) + 1 :] if floor else ())


@dataclass(frozen=True)
class Caller:
    """What routing may know of who asks. Without a session the request id decides."""

    request_id: str
    session: str | None = None
    cohort: Cohort | None = None
    variants: frozenset[str] | None = None
    """The only ones that may serve it, by its API key; None: all."""


@dataclass(frozen=True)
class RouteDecision:
    """Where a request goes first, why, and which variants may stand in, in order."""

    variant: str
    reason: RouteReason
    stand_ins: tuple[str, ...] = ()


def _listing(shares_bp: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {share}" for name, share in shares_bp.items())
