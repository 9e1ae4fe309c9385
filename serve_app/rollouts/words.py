"""A rollout in words: for terminals and reports."""

from serve_app.config.rollout import RolloutConfig
from serve_app.rollout.guards import Guard
from serve_app.rollouts.state import GuardResult, Phase, RolloutState


def headline(config: RolloutConfig, state: RolloutState) -> str:
    """The outcome in one sentence."""
    last = state.steps[-1] if state.steps else None
    names = f"{config.candidate} (from {config.baseline})"
    outcome = {
        Phase.RUNNING: f"{names} is under way, in step {state.standing.step + 1} of "
        f"{len(config.steps)}",
        Phase.PROMOTED: f"{names} is promoted",
        Phase.ROLLED_BACK: f"{names} is rolled back",
        Phase.INCONCLUSIVE: f"{names} is undecided: {config.baseline} stays",
        Phase.ABORTED: f"{names} was called off",
    }[state.phase]
    is_reason = last is not None and state.phase not in (Phase.RUNNING, Phase.ABORTED)
    return f"{outcome}: {last.reason}" if last is not None and is_reason else outcome


def guard_row(guard: Guard, result: GuardResult) -> tuple[str, ...]:
    """One guard in one step: its name, units, excess, tolerated, margin, e-values against and for,
    dependence, threshold."""
    threshold_s = result.threshold_s
    return (
        guard.name,
        f"{result.n:,}",
        "-" if result.excess is None else guard.says(result.excess),
        guard.says(guard.tolerated),
        guard.says(guard.margin),
        f"{result.against:+.2f}",
        f"{result.margin:+.2f}",
        f"{result.dependence:.1f}",
        "-" if threshold_s is None else f"{threshold_s:.4g}",
    )
