"""From what was seen to a verdict. Tests, guards and steps share one budget of errors like this.

Against the candidate there is one e-value: the mean, over guards and over steps, of the e-value of
each guard from the start of each step on (1 for a step that has not begun). A mean of e-values is
one however they depend on each other (Vovk & Wang, Annals of Statistics 49:1736, 2021), so by
Ville's inequality it reaches 1/alpha with probability at most alpha over the whole rollout if the
candidate is no worse than tolerated. A start at each step finds what goes bad with more load.

For the candidate every guard must show its margin kept in every step that asks so, on that step's
own evidence, at level alpha each. A candidate that is worse than a margin in a step gets past that
one test with probability at most alpha, so nothing is divided (intersection-union test: Berger,
Technometrics 24:295, 1982).
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from serve_app.rollout.betting import MOST_GAIN
from serve_app.rollout.guards import Guard, Kind, Property
from serve_app.rollout.observations import (
    Look,
    baseline_counts,
    quantile_edge,
)
from serve_app.rollout.plan import AdvanceOn, RolloutPlan
from serve_app.rollout.standing import GuardStanding
from serve_app.rollout.units import units_of, units_of_pairs, window_counts


class RolloutVerdict(StrEnum):
    """What is to be done now."""

    ROLLBACK = "rollback"
    PROMOTE = "promote"
    """To the next step; after the last one to all of the traffic."""
    CONTINUE = "continue"
    INCONCLUSIVE = "inconclusive"
    """The step's limits are reached: the baseline stays."""


@dataclass(frozen=True)
class Ruling:
    """A verdict with its reason."""

    verdict: RolloutVerdict
    reason: str
    guard: str | None = None
    """Which guard weighs most, of a rollback."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """All evidence of a rollout, and the step that is on."""

    step: int = -1
    """-1 before `begin_step`."""
    n_looks: int = 0
    n_step_looks: int = 0
    n_candidate: int = 0
    """Requests that the candidate answered in this step."""
    guards: dict[str, GuardStanding] = {}
    histograms: dict[str, dict[float, int]] = {}
    """The baseline's latencies since the rollout began: name -> upper edge, s -> requests."""
    thresholds_s: dict[str, float] = {}
    """By guard, for the next look."""


def begin_step(plan: RolloutPlan, standing: Standing) -> Standing:
    """The next step: its evidence begins anew. Thresholds are those of the steps before."""
    guards = {
        guard.name: standing.guards.get(guard.name, GuardStanding()).begun()
        for guard in plan.guards
    }
    fresh = msgspec.structs.replace(
        standing, step=standing.step + 1, n_step_looks=0, n_candidate=0, guards=guards
    )
    return _with_thresholds(plan, fresh)


def observe(plan: RolloutPlan, standing: Standing, look: Look) -> Standing:
    """With what a look brought. It is judged by the thresholds of before it."""
    guards = {
        guard.name: _observed(plan, standing, index, guard, look)
        for index, guard in enumerate(plan.guards)
    }
    histograms = {name: dict(counts) for name, counts in standing.histograms.items()}
    for name in dict.fromkeys(guard.latency for guard in plan.guards if guard.quantile):
        assert name is not None
        counts = histograms.setdefault(name, {})
        for edge, n in baseline_counts(look, name).items():
            counts[edge] = counts.get(edge, 0) + n
    fresh = msgspec.structs.replace(
        standing,
        n_looks=standing.n_looks + 1,
        n_step_looks=standing.n_step_looks + 1,
        n_candidate=standing.n_candidate + look.n_candidate,
        guards=guards,
        histograms=histograms,
    )
    return _with_thresholds(plan, fresh)


def log_against(plan: RolloutPlan, standing: Standing) -> float:
    """Log of the one e-value against the candidate, now."""
    logs = [each for guard in plan.guards for each in standing.guards[guard.name].against]
    n_all = len(plan.guards) * len(plan.steps)
    logs += [0.0] * (n_all - len(logs))
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / n_all)


def rule(
    plan: RolloutPlan, standing: Standing, elapsed_s: float, *, exhausted: bool = False
) -> Ruling:
    """The verdict on the step that is on, `elapsed_s` after it began.

    `exhausted`: there will be no more evidence.
    """
    step, n = plan.steps[standing.step], standing.n_candidate
    if log_against(plan, standing) >= -math.log(plan.alpha):
        guard = _heaviest(plan, standing)
        return Ruling(RolloutVerdict.ROLLBACK, _worse(plan, standing, guard), guard.name)
    enough = n >= step.min_requests and elapsed_s >= step.min_duration_s
    open_ = [guard.name for guard in plan.guards if not is_within_margin(plan, standing, guard)]
    may_pass = standing.n_step_looks >= looks_to_break(plan)
    if enough and may_pass and step.advance_on is AdvanceOn.NO_BREACH:
        return Ruling(RolloutVerdict.PROMOTE, f"nothing against the candidate in {n:,} requests")
    if enough and not open_:
        why = f"every guard is within its margin after {n:,} requests of the candidate"
        return Ruling(RolloutVerdict.PROMOTE, why)
    if n >= step.max_requests or elapsed_s >= step.max_duration_s or exhausted:
        return Ruling(
            RolloutVerdict.INCONCLUSIVE, _undecided(plan, standing, elapsed_s, open_, exhausted)
        )
    if step.advance_on is AdvanceOn.NO_BREACH or not open_:
        return Ruling(RolloutVerdict.CONTINUE, "too early")
    return Ruling(RolloutVerdict.CONTINUE, f"within the margin is not shown of {', '.join(open_)}")


def looks_to_break(plan: RolloutPlan) -> int:
    """Looks before which not even a candidate that is broken throughout is rolled back, so that
    the absence of a rollback says nothing."""
    n_all = len(plan.guards) * len(plan.steps)
    return math.ceil(math.log(n_all / plan.alpha) / MOST_GAIN) + 1


def is_within_margin(plan: RolloutPlan, standing: Standing, guard: Guard) -> bool:
    """Whether this step has shown that the candidate is worse by less than the guard's margin.

    A baseline that fails most of its requests shows nothing: to be like it is no merit.
    """
    state = standing.guards[guard.name]
    if guard.of is Property.ERROR and state.baseline_sum > state.n / 2:
        return False
    return state.best_for >= -math.log(plan.alpha)


def _observed(
    plan: RolloutPlan, standing: Standing, index: int, guard: Guard, look: Look
) -> GuardStanding:
    state, threshold_s = standing.guards[guard.name], standing.thresholds_s.get(guard.name)
    units = units_of(guard, look, threshold_s, (plan.seed, standing.n_looks, index))
    state = state.after(guard, units, state.dependence(plan.dependence))
    if len(look.pairs):
        of_pairs = units_of_pairs(guard, look.pairs, threshold_s)
        state = state.measured_pairs(of_pairs.candidate - of_pairs.baseline)
    if look.windows and guard.kind is Kind.SHARE:
        arms = [
            (
                window_counts(guard, window.candidate, threshold_s),
                window_counts(guard, window.baseline, threshold_s),
            )
            for window in look.windows
        ]
        state = state.measured_windows(arms)
    return state


def _with_thresholds(plan: RolloutPlan, standing: Standing) -> Standing:
    """Any threshold is fair to both arms that was set before what it judges; one that follows all
    that the baseline did so far is also where its tail is."""
    thresholds = {}
    for guard in plan.guards:
        if guard.limit_s is not None:
            thresholds[guard.name] = guard.limit_s
        elif guard.quantile is not None:
            counts = standing.histograms.get(str(guard.latency), {})
            edge = quantile_edge(counts, guard.quantile)
            if edge is not None and sum(counts.values()) >= plan.calibrate_on:
                thresholds[guard.name] = edge
    return msgspec.structs.replace(standing, thresholds_s=thresholds)


def _heaviest(plan: RolloutPlan, standing: Standing) -> Guard:
    return max(plan.guards, key=lambda guard: max(standing.guards[guard.name].against))


def _worse(plan: RolloutPlan, standing: Standing, guard: Guard) -> str:
    state = standing.guards[guard.name]
    shown = state.shown
    told = "in an earlier step" if shown is None else f"{guard.says(shown)} in this step"
    return (
        f"{guard.name}: the candidate is worse ({told}, {guard.says(guard.tolerated)} tolerated; "
        f"e-value {math.exp(min(log_against(plan, standing), 700)):,.0f}, "
        f"{1 / plan.alpha:,.0f} needed)"
    )


def _undecided(
    plan: RolloutPlan, standing: Standing, elapsed_s: float, open_: list[str], exhausted: bool
) -> str:
    step, n = plan.steps[standing.step], standing.n_candidate
    if exhausted:
        end = "there is no more evidence"
    elif n >= step.max_requests:
        end = f"max_requests {step.max_requests:,} reached"
    else:
        end = f"max_duration_s {step.max_duration_s:g} reached after {elapsed_s:.0f} s"
    if n < step.min_requests:
        return f"{end}: {n:,} requests of the candidate, need {step.min_requests:,}"
    unseen = [name for name in open_ if not standing.guards[name].n]
    if unseen:
        return f"{end}: no evidence at all of {', '.join(unseen)}"
    if not open_:
        return f"{end} before min_duration_s {step.min_duration_s:g}"
    return f"{end}: within the margin is not shown of {', '.join(open_)}"
