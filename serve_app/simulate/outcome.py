"""What a simulated policy came to: SLO violations, expected quality, turns."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from serve_app.simulate.engine import Job
from serve_app.simulate.run import Played


@dataclass(frozen=True)
class Limits:
    """The SLO of one request. None: no limit."""

    ttft_s: float | None
    tpot_s: float | None

    def is_missed(self, job: Job) -> bool:
        """Whether a request took longer."""
        late = self.ttft_s is not None and job.ttft_s > self.ttft_s
        slow = self.tpot_s is not None and job.tpot_s is not None and job.tpot_s > self.tpot_s
        return late or slow


@dataclass(frozen=True)
class Outcome:
    """One policy over one trace."""

    name: str
    n: int
    n_violations: int
    quality: float
    """Mean over all requests of the quality of the variant that served it."""
    served: Mapping[str, int]
    ttft_p95_s: float
    tpot_p95_s: float | None
    turns: int
    """How often share that went to cheaper variants began to come back. One per burst is the
    least."""

    @property
    def violation_share(self) -> float:
        """Of all requests."""
        return self.n_violations / self.n


def outcome(name: str, played: Played, limits: Limits, quality: Mapping[str, float]) -> Outcome:
    """What `played` came to."""
    jobs = played.jobs
    tpots = [job.tpot_s for job in jobs if job.tpot_s is not None]
    p95 = rank([job.ttft_s for job in jobs], 0.95)
    assert p95 is not None
    return Outcome(
        name=name,
        n=len(jobs),
        n_violations=sum(limits.is_missed(job) for job in jobs),
        quality=sum(quality[job.variant] for job in jobs) / len(jobs),
        served=Counter(job.variant for job in jobs),
        ttft_p95_s=p95,
        tpot_p95_s=rank(tpots, 0.95),
        turns=turns([mean_rung(shares) for _, shares in played.shares]),
    )


def mean_rung(shares_bp: Mapping[str, float]) -> float:
    """How far down the traffic is on average, in rungs; `shares_bp` has the best first."""
    return sum(index * share for index, share in enumerate(shares_bp.values())) / 10_000


def turns(depths: Sequence[float]) -> int:
    """How often a series that had risen begins to fall; the smallest change counts."""
    found, rising = 0, False
    for before, after in pairwise(depths):
        if after > before:
            rising = True
        elif after < before and rising:
            found, rising = found + 1, False
    return found


def rank(values: Sequence[float], p: float) -> float | None:
    """Nearest-rank quantile; None without values."""
    return sorted(values)[math.ceil(p * len(values)) - 1] if values else None
