"""The four verdicts, with the reason in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.domain.verdict import Verdict
from serve_app.evaluate.statistics.noninferiority import PairedDelta, holm, z_of


@dataclass(frozen=True)
class Judgement:
    """What a test says, and why."""

    verdict: Verdict
    reason: str
    value: float | None = None
    bound: float | None = None
    """One-sided lower bound of `value`, before Holm's correction."""
    limit: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None


def judge_noninferiority(
    deltas: Mapping[str, PairedDelta], baseline_accuracy: float, margin: float, alpha: float
) -> dict[str, Judgement]:
    """Whether each variant's accuracy is within `margin`, relative, of the baseline's.

    Pass: it is shown to be no worse by more than that. Fail: it is shown to be worse by more.
    Holm's correction across the variants, for each claim by itself.
    """
    limit = -margin * baseline_accuracy
    names = list(deltas)
    holds = holm([deltas[name].p_above(limit) for name in names])
    breaks = holm([deltas[name].p_below(limit) for name in names])
    return {
        name: _judged(deltas[name], baseline_accuracy, margin, alpha, (holds[i], breaks[i]))
        for i, name in enumerate(names)
    }


def _judged(
    delta: PairedDelta, accuracy: float, margin: float, alpha: float, adjusted: tuple[float, float]
) -> Judgement:
    found, (p_holds, p_breaks) = delta.found, adjusted
    bound, limit = delta.lower(z_of(alpha)), -margin * accuracy
    if accuracy == 0:
        verdict, why = Verdict.INCONCLUSIVE, "the baseline gets nothing right: nothing can be lost"
    elif p_holds <= alpha:
        verdict = Verdict.PASS
        why = f"at most {max(0.0, -bound):.2%} lost, {-limit:.2%} ({margin:.1%} relative) allowed"
    elif p_breaks <= alpha:
        verdict = Verdict.FAIL
        why = f"{-found.delta:.2%} lost, {-limit:.2%} ({margin:.1%} relative) allowed"
    else:
        verdict = Verdict.INCONCLUSIVE
        why = (
            f"{found.n} items do not decide: {found.delta:+.2%}, at worst {bound:+.2%}, "
            f"{-limit:.2%} ({margin:.1%} relative) allowed: ask more items"
        )
    return Judgement(verdict, why, found.delta, bound, limit, delta.p_above(limit), p_holds)


ORDER = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The one that counts where all have to hold; nothing judged is inconclusive."""
    return min(verdicts, key=ORDER.index, default=Verdict.INCONCLUSIVE)
