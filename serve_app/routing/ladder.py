"""The precision ladder's nouns: its rules, its state, what it is told, and the shares that follow.

Every rung but the last has a *gate*. It holds two things: how many requests the rung may have in
flight before it misses the SLO (`limit`), and which share of the requests that reach it it keeps
(`keep_bp`). What a gate does not keep goes to the next rung, a cheaper variant, which has a gate of
its own; the last rung takes the rest. `ladder_step` moves the gates, `ladder_meter` measures.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serve_app.domain.errors import ConfigError
from serve_app.domain.units import BP_TOTAL

TAIL = 0.05
"""The SLO is kept while at most this share of the answers is slower: a P95."""
_LEAST_ENDED = 8
_LEAST_SLOW, _CHANCE = 3, 0.01
"""So many slow answers, with at most this probability if the SLO held, are no chance."""


@dataclass(frozen=True)
class LadderRules:
    """What the ladder may do, and when. Seconds, basis points; None: there is no such limit."""

    rungs: tuple[str, ...]
    """Variants, from the best quality to the cheapest; at least two."""
    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    max_in_flight: Mapping[str, int] | None = None
    """Most in flight on a rung, of this router replica; a rung that is not named learns its own."""
    window_s: float = 10.0
    """Over which answers and arrivals are counted."""
    min_answers: int = 20
    """Answers since a limit was last changed before it may grow."""
    down_bp: int = 5000
    up_bp: int = 2500
    """Most that one move takes from, or gives back to, a rung."""
    down_dwell_s: float = 2.0
    up_dwell_s: float = 4.0
    """Shortest time from any move of a gate to a move down, and to a move up."""
    clear_bp: int = 8500
    """A move up leaves the rung at most at this part of the rate that it carried at its limit."""
    hysteresis_bp: int = 1000
    """A move up must be worth at least this part of what the rung keeps now."""


@dataclass(frozen=True)
class Gate:
    """The gate of one rung. `limit` None: no number in flight is known to be too many."""

    variant: str
    keep_bp: int = BP_TOTAL
    limit: int | None = None
    limit_since_s: float = 0.0
    """When `limit` changed: answers to older requests say nothing of it."""
    missed: int | None = None
    """The depth that last missed the SLO; `limit` does not grow to it again for a while."""
    full_s: float = 0.0
    full_ended: float = 0.0
    """How long the rung was full, and what it finished then; what is long ago counts less."""
    moved_at_s: float = 0.0
    """When `keep_bp` changed."""

    def capacity_per_s(self, deviations: float = 0.0) -> float | None:
        """Movable requests per second that the rung carries when it is full, less so many standard
        deviations of the count; None: it was never full for long enough to tell."""
        if self.full_ended < _LEAST_ENDED:
            return None
        least = self.full_ended - deviations * math.sqrt(self.full_ended)
        return max(0.0, least) / self.full_s


@dataclass(frozen=True)
class LadderState:
    """Where the ladder stands. Times are of the clock that the steps were given."""

    gates: tuple[Gate, ...]
    """One per rung but the last, best first."""
    last: str
    """The cheapest variant, which takes what all gates pass on."""
    reason: str = "all traffic on the best variant"
    """Why the gates stand as they do: of the last change."""
    changes: int = 0
    """Moves so far."""

    @classmethod
    def start(cls, rules: LadderRules, now_s: float) -> "LadderState":
        """All traffic on the best variant."""
        given = rules.max_in_flight or {}
        gates = (
            Gate(name, limit=given.get(name), limit_since_s=now_s, moved_at_s=now_s)
            for name in rules.rungs[:-1]
        )
        return cls(tuple(gates), rules.rungs[-1])

    @property
    def rungs(self) -> tuple[str, ...]:
        """Variants, from the best to the cheapest."""
        return (*(gate.variant for gate in self.gates), self.last)

    @property
    def rung(self) -> str:
        """The cheapest variant that has a share now, however small."""
        shares = shares_for(self)
        return next(name for name in reversed(self.rungs) if shares[name])

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `/status`, logs and files."""
        return asdict(self) | {"shares_bp": shares_for(self), "rung": self.rung}


@dataclass(frozen=True)
class GateReadings:
    """What was seen at one gate. Rates and counts are of this router replica alone."""

    in_flight: int = 0
    peak_in_flight: int = 0
    """Highest in the window."""
    offered: float = 0.0
    """Requests that reached the gate in the window and might have gone further down."""
    duration_s: float | None = None
    """Mean of the rung's answers; None: it has given none."""
    evidence_s: float = 0.0
    """Time since this gate or one above it moved, without that in which a rung had more in flight
    than its limit: what was turned away then tells of the queue from before, not of the load."""
    evidence_offered: float = 0.0
    mean_in_flight: float = 0.0
    """In that time."""
    wanted: float = 0.0
    """Requests in that time that might have gone further down; and those that `keep_bp` kept."""
    turned: float = 0.0
    """Of `wanted`, how many it passed on because the rung was at its limit."""
    turned_in_window: float = 0.0
    full_s: float = 0.0
    full_ended: int = 0
    """Since the last reading: how long the rung was full, and how many movable requests it
    finished meanwhile (all, less those that came past its gate)."""
    n_answers: int = 0
    """Answers to requests that began after the limit was last changed."""
    n_deep: int = 0
    """Of those, how many met `slow_depth` or deeper."""
    n_slow: int = 0
    """Of `n_deep`, how many missed TTFT or TPOT."""
    slow_depth: int | None = None
    """In flight for slow requests (TTFT: when they began; TPOT: on average): nine tenths of them
    had this many or more."""
    below_misses: bool = False
    """Whether a cheaper rung misses the SLO now."""
    worst: float | None = None
    """P95 of those answers as a part of its limit, the worse of TTFT and TPOT."""
    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    """Of all answers in the window; None without any."""
    window_s: float = 0.0
    """How much of the window has been seen: less at the start."""


def is_missed(n_slow: int, n: int) -> bool:
    """Whether `n_slow` of `n` tell that the SLO is missed: more than 5 %, and hardly by chance."""
    if n_slow < _LEAST_SLOW or n_slow <= TAIL * n:
        return False
    fewer = sum(math.comb(n, k) * TAIL**k * (1 - TAIL) ** (n - k) for k in range(n_slow))
    return 1 - fewer < _CHANCE


def shares_for(
    state: LadderState, floor: str | None = None, closed: Collection[int] = ()
) -> dict[str, int]:
    """Shares of the rungs in basis points; they sum to 10,000, and every rung is named.

    `floor`: the cheapest variant that these requests may get; what would go further down stays
    there. `closed`: gates (by their position) whose rung is at its limit at this moment, and which
    keep nothing until it is not. Raises ConfigError for a floor that is no rung.
    """
    rungs = state.rungs
    if floor is not None and floor not in rungs:
        raise ConfigError(f"the floor {floor!r} is not a rung of the ladder: {', '.join(rungs)}")
    lowest = rungs.index(floor) if floor is not None else len(rungs) - 1
    shares, left = dict.fromkeys(rungs, 0), BP_TOTAL
    for index, gate in enumerate(state.gates[:lowest]):
        kept = 0 if index in closed else round(left * gate.keep_bp / BP_TOTAL)
        shares[gate.variant] = kept
        left -= kept
    shares[rungs[lowest]] += left
    return shares
