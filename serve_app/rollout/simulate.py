"""A plan tried on traffic that is made up: how often it errs, how many requests it needs.

Latencies are lognormal with a heavier tail mixed in; both arms share a load that drifts, each has
stalls of its own that slow or fail several requests in a row. Seeded.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve_app.rollout.judge import (
    RolloutVerdict,
    Ruling,
    Standing,
    begin_step,
    observe,
    rule,
)
from serve_app.rollout.observations import NO_PAIRS, ArmWindow, Look, Pairs, Values, Window
from serve_app.rollout.plan import RolloutPlan

EDGES_S = tuple(float(f"{edge:.4g}") for edge in 0.001 * 1.25 ** np.arange(45))
"""Of a simulated histogram."""


@dataclass(frozen=True)
class Arm:
    """How one arm answers."""

    median_s: float = 0.2
    sigma: float = 0.5
    """Of the log of the latency."""
    tail_share: float = 0.02
    """Requests whose latency is multiplied by a Pareto variable."""
    tail_index: float = 2.5
    error_rate: float = 0.002
    disagreement: float = 0.1
    """Of its answers with the baseline's."""
    wrong: float = 0.05
    """Share of its answers that miss what is expected."""
    stall_share: float = 0.0
    """Of its requests that fall into a stall of this arm, which slows them threefold."""
    stall_length: int = 1
    """Requests in a stall."""
    stretch: float = 1.0
    """Of the log of latencies above the median."""
    tpot_s: float = 0.02

    def slower(self, ratio: float) -> "Arm":
        """All of its latencies times `ratio`."""
        return replace(self, median_s=self.median_s * ratio, tpot_s=self.tpot_s * ratio)

    def slower_at_p99(self, ratio: float) -> "Arm":
        """P99 times `ratio`, the median as it was: what is above it is stretched."""
        return replace(self, stretch=1 + np.log(ratio) / self.excess_at_p99())

    def excess_at_p99(self) -> float:
        """Log of P99 over the median, at one load; of a sample."""
        return float(np.quantile(self.excess(400_000, np.random.default_rng(0)), 0.99))

    def excess(self, n: int, rng: np.random.Generator) -> Values:
        """Logs of latencies over their median, of n requests."""
        slow = rng.random(n) < self.tail_share
        excess: Values = self.sigma * rng.normal(size=n)
        excess += np.where(slow, rng.exponential(1 / self.tail_index, n), 0.0)
        return np.where(excess > 0, excess * self.stretch, excess)


@dataclass(frozen=True)
class Traffic:
    """Both arms, and what they have in common."""

    baseline: Arm = Arm()
    candidate: Arm = Arm()
    drift: float = 0.3
    """Standard deviation of the common load, in logs of the latency."""
    drift_length: int = 200
    """Requests over which it changes."""
    worse_from_step: int = 0
    """The candidate is like the baseline in the steps before."""


@dataclass(frozen=True)
class Outcome:
    """How one simulated rollout ended."""

    ruling: Ruling
    step: int
    n_requests: int
    """Of the candidate, in all steps."""


def simulate(
    plan: RolloutPlan,
    traffic: Traffic,
    rng: np.random.Generator,
    *,
    look_size: int = 50,
    probed: float = 1.0,
) -> Outcome:
    """One rollout, peeking after every `look_size` requests of the candidate.

    `probed`: the share of these that are pairs of probes; the rest are live requests, counted in
    buckets, with the split's own shares. A step that gives the candidate nothing has probes alone.
    """
    standing, load, n_total = Standing(), 0.0, 0
    for index, step in enumerate(plan.steps):
        standing = begin_step(plan, standing)
        arms = (
            traffic
            if index >= traffic.worse_from_step
            else replace(traffic, candidate=traffic.baseline)
        )
        n_probed = round(look_size * probed) if step.share_bp else look_size
        while True:
            pairs = NO_PAIRS
            windows: tuple[Window, ...] = ()
            if n_probed:
                pairs, load = _pairs(arms, n_probed, load, rng)
            if n_probed < look_size:
                window, load = _window(arms, step.share_bp, look_size - n_probed, load, rng)
                windows = (window,)
            look = Look(pairs=pairs, windows=windows)
            standing = observe(plan, standing, look)
            n_total += look.n_candidate
            ruling = rule(plan, standing, step.min_duration_s)
            if ruling.verdict is not RolloutVerdict.CONTINUE:
                break
        if ruling.verdict is not RolloutVerdict.PROMOTE:
            break
    return Outcome(ruling, standing.step, n_total)


def _pairs(traffic: Traffic, n: int, load: float, rng: np.random.Generator) -> tuple[Pairs, float]:
    log_load, load = _loads(traffic, n, n, load, rng)
    both = [_answers(arm, n, log_load, rng) for arm in (traffic.baseline, traffic.candidate)]
    ok = np.column_stack([each[0] for each in both])
    columns = {}
    for place, name in ((1, "ttft"), (2, "tpot")):
        latencies_s = np.column_stack([each[place] for each in both])
        columns[name] = np.where(ok, latencies_s, np.nan)
    pairs = Pairs(
        ok=ok,
        latencies_s=columns,
        wrong=np.where(
            ok, rng.random((n, 2)) < [traffic.baseline.wrong, traffic.candidate.wrong], np.nan
        ),
        disagrees=(rng.random(n) < traffic.candidate.disagreement).astype(float),
        floor_disagrees=(rng.random(n) < traffic.baseline.disagreement).astype(float),
    )
    return pairs, load


def _window(
    traffic: Traffic, share_bp: int, n: int, load: float, rng: np.random.Generator
) -> tuple[Window, float]:
    n_baseline = max(1, round(n * (10_000 - share_bp) / share_bp))
    log_load, load = _loads(traffic, n, 50, load, rng)
    arms = []
    for arm, size in ((traffic.baseline, n_baseline), (traffic.candidate, n)):
        at = np.interp(np.linspace(0, 1, size), np.linspace(0, 1, len(log_load)), log_load)
        ok, ttft_s, tpot_s = _answers(arm, size, at, rng)
        latencies = {"ttft": _buckets(ttft_s[ok]), "tpot": _buckets(tpot_s[ok])}
        arms.append(ArmWindow(requests=size, errors=int((~ok).sum()), latencies=latencies))
    return Window(baseline=arms[0], candidate=arms[1]), load


def _buckets(latencies_s: Values) -> dict[float, int]:
    edges = (*EDGES_S, float("inf"))
    counts = np.bincount(np.searchsorted(EDGES_S, latencies_s), minlength=len(edges))
    return dict(zip(edges, counts.tolist(), strict=True))


def _loads(
    traffic: Traffic, n: int, points: int, load: float, rng: np.random.Generator
) -> tuple[Values, float]:
    """The common load at `points` places of the next n requests: a stationary AR(1)."""
    keep = np.exp(-n / points / traffic.drift_length)
    noise = rng.normal(size=points) * traffic.drift * np.sqrt(1 - keep * keep)
    values = np.empty(points)
    for i in range(points):
        load = keep * load + noise[i]
        values[i] = load
    return values, float(load)


def _answers(
    arm: Arm, n: int, log_load: Values, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], Values, Values]:
    """(ok, TTFT, TPOT) of n requests."""
    log_ttft = np.log(arm.median_s) + log_load + arm.excess(n, rng)
    log_tpot = np.log(arm.tpot_s) + log_load + 0.1 * rng.normal(size=n)
    if arm.stall_share:
        begins = rng.random(n + arm.stall_length) < arm.stall_share / arm.stall_length
        stalled = np.convolve(begins, np.ones(arm.stall_length))[
            arm.stall_length : arm.stall_length + n
        ]
        log_ttft += np.log(3.0) * (stalled > 0.5)
    return rng.random(n) >= arm.error_rate, np.exp(log_ttft), np.exp(log_tpot)
