"""How one variant stands to another on one axis, and what of it is decided.

Gains are positive where the first is the better one: natural logarithms of ratios for latency,
memory and cost (`log 2`: half as slow, half as large, half as dear), differences for quality.
"""

import math
from dataclasses import dataclass

ALPHA = 0.05


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; an end that is not known is None, never 0."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Contrast:
    """How `first` stands to `second`. Gains within `margin` count as none.

    `is_not_worse` says that the interval leaves no room for a loss beyond the margin: what
    non-inferiority is. Nothing decided: all four are False.
    """

    first: str
    second: str
    gain: float | None
    low: float | None
    high: float | None
    margin: float
    is_better: bool = False
    is_worse: bool = False
    is_not_worse: bool = False
    is_not_better: bool = False
    reason: str = ""
    """Why nothing, or not more, is decided."""

    @property
    def is_same(self) -> bool:
        """Whether the whole interval counts as no difference."""
        return self.is_not_worse and self.is_not_better

    @property
    def is_decided(self) -> bool:
        """Whether it is known who is better, or that neither is."""
        return self.is_better or self.is_worse or self.is_same

    def reversed(self) -> "Contrast":
        """How `second` stands to `first`."""
        return Contrast(
            self.second,
            self.first,
            None if self.gain is None else -self.gain,
            None if self.high is None else -self.high,
            None if self.low is None else -self.low,
            self.margin,
            is_better=self.is_worse,
            is_worse=self.is_better,
            is_not_worse=self.is_not_better,
            is_not_better=self.is_not_worse,
            reason=self.reason,
        )


def judge_gain(
    first: str,
    second: str,
    gain: Interval,
    margin: float,
    *,
    p_value: float | None = None,
    reason: str = "",
) -> Contrast:
    """What an interval of the gain decides.

    Better: the interval lies above 0, the gain itself beyond the margin, and `p_value` (after
    correction for all that was compared with it; None where there was nothing to correct) is below
    5 %. An interval inside the margin is no difference, be it ever so sure.
    """
    low, high = gain.low, gain.high
    not_worse, not_better = low is not None and low >= -margin, high is not None and high <= margin
    may_differ = not (not_worse and not_better) and (p_value is None or p_value < ALPHA)
    better = may_differ and low is not None and low > 0 and gain.value > margin
    worse = may_differ and high is not None and high < 0 and gain.value < -margin
    if not reason and not (better or worse or (not_worse and not_better)):
        reason = "the samples do not decide"
    return Contrast(
        first, second, gain.value, low, high, margin, better, worse, not_worse, not_better, reason
    )


def undecided(first: str, second: str, margin: float, reason: str) -> Contrast:
    """Nothing is known of the two."""
    return Contrast(first, second, None, None, None, margin, reason=reason)


def smaller_is_better(
    first: str, second: str, one: Interval | None, other: Interval | None, margin: float
) -> Contrast:
    """The gain of the smaller of two positive quantities, by intervals that know nothing of each
    other: decided only where they do not overlap.
    """
    lacking = " and ".join(n for n, v in ((first, one), (second, other)) if v is None)
    if one is None or other is None:
        return undecided(first, second, margin, f"nothing is known of {lacking}")
    value = _log_ratio(other.value, one.value)
    if value is None:
        reason = f"{other.value:g} and {one.value:g} have no ratio"
        return undecided(first, second, margin, reason)
    gain = Interval(value, _log_ratio(other.low, one.high), _log_ratio(other.high, one.low))
    return judge_gain(first, second, gain, margin, reason="")


def _log_ratio(above: float | None, below: float | None) -> float | None:
    if above is None or below is None or not (above > 0 and below > 0):
        return None
    if math.isinf(above) and math.isinf(below):
        return None
    return math.log(above) - math.log(below)
