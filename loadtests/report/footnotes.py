"""What stands under a table: why a number of it is missing, infinite, or has no bound."""

import math
from collections.abc import Iterable, Iterator

from loadtests.analyse.stats import Quantile
from loadtests.report.rows import percentile_name
from loadtests.report.stages import StageRows

SUMMARISED = {"ttft_user_ms": (0.50, 0.95, 0.99), "e2e_user_ms": (0.50, 0.95, 0.99)}
"""Failure-aware percentiles in the summary; beside them it has TPOT P50."""


def under_summary(group: StageRows) -> str:
    """Of the summary of a stage; empty where it needs none."""
    found = [
        q
        for row in group.rows
        for name, ps in SUMMARISED.items()
        for q in row.latencies[name].with_failures or row.latencies[name].quantiles
        if q.p in ps
    ]
    return _sentences(found + [row.latencies["tpot_ms"].at(0.50) for row in group.rows])


def under_latencies(group: StageRows) -> str:
    """Of the table with every latency, which has the intervals too."""
    latencies = [latency for row in group.rows for latency in row.latencies.values()]
    found = [q for each in latencies for q in (*each.quantiles, *(each.with_failures or ()))]
    known = [q for q in found if q.value is not None and math.isfinite(q.value)]
    notes = dict.fromkeys(q.note for q in known if q.note)
    is_open = any(q.low is None or q.high is None for q in known)
    more = ["…: on that side the sample has no bound."] if is_open else []
    if any(q.high is not None and math.isinf(q.high) for q in known):
        more.append("∞ as upper end: failures reach it.")
    return " ".join(filter(None, [_sentences(found), *more, *(f"Some: {each}." for each in notes)]))


def _sentences(quantiles: Iterable[Quantile]) -> str:
    known = list(quantiles)
    lacking = "; ".join(_lacking([q for q in known if q.value is None]))
    found = [f"-: {lacking}."] if lacking else []
    if any(q.value is not None and math.isinf(q.value) for q in known):
        found.append("∞: failures reach the percentile.")
    return " ".join(found)


def _lacking(quantiles: Iterable[Quantile]) -> Iterator[str]:
    """`P99: need n >= 100, have 38 to 40`, one per percentile and reason."""
    have: dict[tuple[float, str], list[int]] = {}
    for q in quantiles:
        reason = q.reason or "not known"
        have.setdefault((q.p, reason.partition(", have ")[0]), []).append(q.n)
    for (p, need), ns in sorted(have.items()):
        span = " to ".join(dict.fromkeys((f"{min(ns):,}", f"{max(ns):,}")))
        yield f"{percentile_name(p)}: {need}, have {span}"
