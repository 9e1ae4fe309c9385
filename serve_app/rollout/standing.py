"""How the evidence stands: small, serialisable, and the same after a crash as before it."""

from __future__ import annotations

import msgspec
import numpy as np

from serve_app.rollout.betting import STAKES, Values, excess, log_growth, log_mean
from serve_app.rollout.dependence import BLOCK, Spread, design_effect
from serve_app.rollout.guards import Guard, Kind
from serve_app.rollout.msprt import log_above, log_below
from serve_app.rollout.slo import log_breached, log_kept
from serve_app.rollout.units import Units

Counts = tuple[int, int]
_EVEN = (0.0,) * len(STAKES)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One e-process of a guard, from the start of one step on."""

    bets: tuple[float, ...] = _EVEN
    """SHARE: log of what each bettor has."""
    n: int = 0
    """MEAN, LIMIT: values, their sum and their sum of squares."""
    total: float = 0.0
    squares: float = 0.0

    def thinned(self, dependence: float) -> tuple[float, float, float]:
        """Count, sum and sum of squares of as many independent values as these are worth."""
        return self.n / dependence, self.total / dependence, self.squares / dependence


class GuardStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One guard. What is counted is of the step that is on; `runs` has one entry a step begun."""

    runs: tuple[Run, ...] = ()
    bets_for: tuple[float, ...] = _EVEN
    """SHARE: bets that the candidate is better than baseline plus margin, in this step."""
    best_for: float = 0.0
    """The largest log e-value for "within the margin" that was reached in this step."""
    against: tuple[float, ...] = ()
    """Log e-values against "no worse than tolerated" now, one a step begun."""
    n: int = 0
    candidate_sum: float = 0.0
    """SHARE, LIMIT: units with the property; MEAN: log ratios."""
    baseline_sum: float = 0.0
    block: tuple[float, ...] = ()
    """Differences of pairs of a block under way, for the measurement of dependence."""
    spreads: dict[str, Spread] = {}

    def dependence(self, configured: float) -> float:
        """The larger of what was configured and what was measured."""
        return max(configured, design_effect(self.spreads.values()))

    def begun(self) -> GuardStanding:
        """At the start of a step."""
        return GuardStanding(
            runs=(*self.runs, Run()),
            against=(*self.against, 0.0),
            spreads=self.spreads,
            block=self.block,
        )

    def after(self, guard: Guard, units: Units, dependence: float) -> GuardStanding:
        """With these units more; what is measured of them counts from the next look on."""
        values, base = units.candidate, units.baseline
        if not len(values):
            return self
        changes = {
            "n": self.n + len(values),
            "candidate_sum": self.candidate_sum + float(values.sum()),
            "baseline_sum": self.baseline_sum + float(base.sum()),
        }
        if guard.kind is Kind.SHARE:
            worse = log_growth(excess(values, base, guard.tolerated), dependence)
            better = log_growth(-excess(values, base, guard.margin), dependence)
            runs = tuple(Run(bets=_plus(run.bets, worse)) for run in self.runs)
            fresh = msgspec.structs.replace(
                self, runs=runs, bets_for=_plus(self.bets_for, better), **changes
            )
        else:
            sums = len(values), float(values.sum()), float((values**2).sum())
            runs = tuple(_added(run, *sums) for run in self.runs)
            fresh = msgspec.structs.replace(self, runs=runs, **changes)
        return msgspec.structs.replace(
            fresh,
            best_for=max(self.best_for, fresh.log_for(guard, dependence)),
            against=fresh._log_against(guard, dependence),
        )

    def measured_pairs(self, differences: Values) -> GuardStanding:
        """The dependence of pairs, by blocks of their differences."""
        kept, spread = (
            np.concatenate([self.block, differences]),
            self.spreads.get("pairs", Spread()),
        )
        n_whole = len(kept) // BLOCK
        if n_whole:
            blocks = kept[: n_whole * BLOCK].reshape(-1, BLOCK)
            spread = spread.after(blocks.mean(axis=1), blocks.var(axis=1, ddof=1) / BLOCK)
        spreads = {**self.spreads, "pairs": spread}
        return msgspec.structs.replace(
            self, block=tuple(kept[n_whole * BLOCK :].tolist()), spreads=spreads
        )

    def measured_windows(
        self, arms: list[tuple[tuple[int, int], tuple[int, int]]]
    ) -> GuardStanding:
        """The dependence within arms, by the differences of their shares in successive windows.

        Each window: (requests with the property, requests) of both arms. The difference, since what
        moves both arms alike (the load) is no dependence to this test.
        """
        seen = [window for window in arms if min(n for _, n in window) > 1]
        means = np.array([ours[0] / ours[1] - theirs[0] / theirs[1] for ours, theirs in seen])
        variances = np.array([_variance(*ours) + _variance(*theirs) for ours, theirs in seen])
        spread = self.spreads.get("windows", Spread()).after(means, variances)
        return msgspec.structs.replace(self, spreads={**self.spreads, "windows": spread})

    def _log_against(self, guard: Guard, dependence: float) -> tuple[float, ...]:
        if guard.kind is Kind.SHARE:
            return tuple(log_mean(np.array([run.bets for run in self.runs])).tolist())
        if guard.kind is Kind.MEAN:
            return tuple(log_above(*run.thinned(dependence), guard.tolerated) for run in self.runs)
        return tuple(
            log_breached(round(run.total), run.n, guard.tolerated, dependence) for run in self.runs
        )

    def log_for(self, guard: Guard, dependence: float) -> float:
        """Log e-value against "worse than the margin", of the step that is on, now."""
        if guard.kind is Kind.SHARE:
            return float(log_mean(np.array(self.bets_for)))
        run = self.runs[-1]
        if guard.kind is Kind.MEAN:
            return log_below(*run.thinned(dependence), guard.margin)
        return log_kept(round(run.total), run.n, guard.margin, dependence)

    @property
    def shown(self) -> float | None:
        """SHARE: the excess share; MEAN: the mean log ratio; LIMIT: the share. Of this step."""
        return (self.candidate_sum - self.baseline_sum) / self.n if self.n else None


def _plus(bets: tuple[float, ...], growth: Values) -> tuple[float, ...]:
    return tuple((np.array(bets) + growth).tolist())


def _added(run: Run, n: int, total: float, squares: float) -> Run:
    return Run(n=run.n + n, total=run.total + total, squares=run.squares + squares)


def _variance(k: int, n: int) -> float:
    """Of a share, if requests were independent; without bias, for n > 1."""
    return k * (n - k) / n**2 / (n - 1)
