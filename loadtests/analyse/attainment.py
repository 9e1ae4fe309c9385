"""Shares of requests, their intervals, and the verdict on an SLO.

Two-sided intervals throughout: a pass says that the share is above the target with 97.5 %
confidence, a fail that it is below. So with not one miss 368 requests are needed for a target of
99 % and 72 for one of 95 %: the sample sizes from which a two-sided interval of P99 and P95
exists, which is the same question.
"""

import math
from collections.abc import Sequence

from loadtests.analyse.distributions import CONFIDENCE, beta_cdf, clopper_pearson
from loadtests.analyse.nouns import Share, Verdict
from loadtests.analyse.stats import effective_size

_TAIL = (1 - CONFIDENCE) / 2
_MOST = 10_000_000
"""Beyond so many requests no number is named: the share is the target."""


def share_of(cells: Sequence[Sequence[bool]]) -> Share:
    """The share of true ones, by cell in the order of `t_sched`.

    The interval is that of Clopper and Pearson on the effective sample size: misses come in
    bursts, and a burst says less than as many misses far apart; and cells differ by more than
    chance. No samples: 0 to 1.
    """
    n = sum(len(cell) for cell in cells)
    k = sum(sum(cell) for cell in cells)
    if n == 0:
        return Share(k=0, n=0, n_eff=0, low=0.0, high=1.0)
    n_eff = effective_size(cells)
    low, high = clopper_pearson(k * n_eff / n, n_eff)
    return Share(k=k, n=n, n_eff=n_eff, low=low, high=high)


def judge(share: Share, target: float) -> tuple[Verdict, str]:
    """Whether at least `target` of the requests meet the SLO, and why.

    Pass if the interval's low end reaches the target, fail if its high end does not, else
    inconclusive with the number of requests that would decide if the share stays as it was.
    """
    if share.n == 0:
        return Verdict.INCONCLUSIVE, "no request was planned"
    seen = (
        f"{_percent(share.k / share.n)} of {share.n} met it, interval "
        f"[{_percent(share.low)}, {_percent(share.high)}]"
    )
    if share.low >= target:
        return Verdict.PASS, f"{seen}, target {_percent(target)}"
    if share.high < target:
        return Verdict.FAIL, f"{seen}, target {_percent(target)}"
    need = requests_needed(share, target)
    more = "too near to decide" if need is None else f"need about {need} requests"
    return Verdict.INCONCLUSIVE, f"{seen} holds the target {_percent(target)}: {more}"


def fails_at_best(sent: Share, n_unsent: int, target: float) -> str | None:
    """Why the SLO fails even if all requests that were never sent had met it; None: it need not.

    `sent` is the share of those that were. Without any other it is `judge`'s fail.
    """
    n = sent.n + n_unsent
    best = (sent.high * sent.n + n_unsent) / n if n else 1.0
    if best >= target:
        return None
    if not n_unsent:
        return judge(sent, target)[1]
    return (
        f"{_percent(sent.k / sent.n)} of {sent.n} that were sent met it: at most {_percent(best)} "
        f"of {n} if the {n_unsent} others had, target {_percent(target)}"
    )


def requests_needed(share: Share, target: float) -> int | None:
    """Requests from which a share as seen would pass or fail; None if it is too near the target.

    At the same dependence between requests as was seen: more cells, not longer ones.
    """
    seen, n_eff = share.k / share.n, share.n_eff or share.n

    def decides(n: int) -> bool:
        k = seen * n
        passes = k > 0 and beta_cdf(target, k, n - k + 1) <= _TAIL
        return passes or (k < n and beta_cdf(target, k + 1, n - k) > 1 - _TAIL)

    high = 1
    while not decides(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return math.ceil(high * share.n / n_eff)


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
