"""Gaps between token events, pooled over requests: what a reader of the stream feels.

Percentiles here have no intervals: the gaps of one request depend on each other, and there are
so many that an interval as for independent ones would be far too narrow.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from loadtests.analyse.nouns import LatencySummary
from loadtests.analyse.stats import PERCENTILES, Quantile, too_few
from loadtests.records.record import RequestRecord

NO_INTERVAL = "no interval: the gaps of one request depend on each other"
Samples = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Values in ms, and how many samples each of them stands for."""


def icl_ms(records: Iterable[RequestRecord]) -> Samples:
    """Gaps between events as they came (inter-chunk latency)."""
    return _pooled((np.diff(r.event_us) / 1000, 1.0) for r in records if len(r.event_us) > 1)


def itl_ms(records: Iterable[RequestRecord]) -> Samples:
    """Inter-token latency: each gap of `k` tokens is `k` samples of `gap / k`.

    Engines may send several tokens in one event; the server's count says how many on average,
    so `k = N / events` of the request, which need not be whole. Requests without a count are
    left out.
    """
    return _pooled(
        (np.diff(r.event_us) / 1000, r.output_tokens / len(r.event_us))
        for r in records
        if len(r.event_us) > 1 and r.output_tokens
    )


def _pooled(parts: Iterable[tuple[NDArray[np.float64], float]]) -> Samples:
    """All gaps, each divided by its request's `k` and weighing `k`."""
    values, weights = [np.empty(0)], [np.empty(0)]
    for gaps, k in parts:
        values.append(gaps / k)
        weights.append(np.full(len(gaps), k))
    return np.concatenate(values), np.concatenate(weights)


def summary_of(samples: Samples, percentiles: Sequence[float] = PERCENTILES) -> LatencySummary:
    """Exact weighted nearest-rank percentiles and the mean; with equal weights the plain ones."""
    values, weights = samples
    order = np.argsort(values, kind="stable")
    ordered, up_to = values[order], np.cumsum(weights[order])
    total = float(up_to[-1]) if len(up_to) else 0.0
    n = round(total)
    quantiles = []
    for p in percentiles:
        reason = too_few(n, p)
        value = None
        if reason is None:
            place = int(np.searchsorted(up_to, p * total * (1 - 1e-12), side="left"))
            value = float(ordered[min(place, len(ordered) - 1)])
        note = None if value is None else NO_INTERVAL
        quantiles.append(Quantile(p=p, value=value, n=n, reason=reason, note=note))
    mean = float(values @ weights) / total if n else None
    return LatencySummary(quantiles=tuple(quantiles), with_failures=None, mean=mean)
