"""What admission counts between two reports: plain additions, cheap enough for every request."""

from collections import Counter
from dataclasses import dataclass, field

MAX_TENANT_LABELS = 100
OTHER_TENANTS = "other"


@dataclass
class AdmissionCounts:
    """Since the last report, but for the gauges, which are as of now."""

    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By tenant and reason."""
    requests: Counter[str] = field(default_factory=Counter)
    """Admitted, by tenant."""
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By tenant and kind: prompt, completion."""
    waits_s: list[float] = field(default_factory=list)
    in_flight: int = 0
    waiting: int = 0
    keys_stale: bool | None = None
    """Whether the file of keys is broken or gone; None: there is none."""


class TenantLabels:
    """Labels of a metric: a bounded number of tenants by name, for as long as the process lives."""

    def __init__(self, limit: int = MAX_TENANT_LABELS) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def of(self, tenant: str) -> str:
        """The tenant's own name, or `other` where there are too many."""
        if tenant not in self._known:
            if len(self._known) >= self._limit:
                return OTHER_TENANTS
            self._known.add(tenant)
        return tenant
