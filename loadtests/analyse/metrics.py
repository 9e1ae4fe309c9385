"""What each number of a report means, once: the latencies of one request and their formulas."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from loadtests.campaign import Slo
from loadtests.records.record import RequestRecord
from serve_app.domain.units import NS_PER_MS


@dataclass(frozen=True)
class Latency:
    """One latency: its formula, as reports print it, and its value for a record, in ms."""

    formula: str
    of: Callable[[RequestRecord], float | None]
    """None where it is not defined, as TPOT is for one token."""
    counts_failures: bool = False
    """Whether users wait for it, so that its percentiles are also given with failures as inf."""
    has_bootstrap: bool = False


def _between(start_ns: int | None, end_ns: int | None) -> float | None:
    if start_ns is None or end_ns is None:
        return None
    return (end_ns - start_ns) / NS_PER_MS


def ttft_user_ms(record: RequestRecord) -> float | None:
    """From the planned send time to the first token."""
    return _between(record.t_sched_ns, record.t_first_ns)


def ttft_service_ms(record: RequestRecord) -> float | None:
    """From the real send time to the first token."""
    return _between(record.t_send_ns, record.t_first_ns)


def e2e_user_ms(record: RequestRecord) -> float | None:
    """From the planned send time to the last token."""
    return _between(record.t_sched_ns, record.t_last_ns)


def e2e_service_ms(record: RequestRecord) -> float | None:
    """From the real send time to the last token."""
    return _between(record.t_send_ns, record.t_last_ns)


def tpot_ms(record: RequestRecord) -> float | None:
    """Time per output token after the first; None for fewer than two tokens."""
    decode_ms = _between(record.t_first_ns, record.t_last_ns)
    if decode_ms is None or record.output_tokens is None or record.output_tokens < 2:
        return None
    return decode_ms / (record.output_tokens - 1)


def ntpot_ms(record: RequestRecord) -> float | None:
    """Time of the whole answer per output token; None for no tokens."""
    whole_ms = e2e_service_ms(record)
    return (
        whole_ms / record.output_tokens if whole_ms is not None and record.output_tokens else None
    )


def stall_ms(record: RequestRecord) -> float | None:
    """The longest gap between token events; None for fewer than two events."""
    gaps = [after - before for before, after in pairwise(record.event_us)]
    return max(gaps) / 1000 if gaps else None


def lag_ms(record: RequestRecord) -> float | None:
    """How late the client sent it; None if it never did."""
    return _between(record.t_sched_ns, record.t_send_ns)


LATENCIES: Mapping[str, Latency] = {
    "ttft_user_ms": Latency("t_first - t_sched", ttft_user_ms, True, True),
    "ttft_service_ms": Latency("t_first - t_send", ttft_service_ms),
    "e2e_user_ms": Latency("t_last - t_sched", e2e_user_ms, True, True),
    "e2e_service_ms": Latency("t_last - t_send", e2e_service_ms),
    "tpot_ms": Latency(
        "(t_last - t_first) / (N - 1); not defined for N < 2 or unknown N",
        tpot_ms,
        has_bootstrap=True,
    ),
    "ntpot_ms": Latency("(t_last - t_send) / N; not defined for N = 0 or unknown N", ntpot_ms),
    "stall_ms": Latency("longest gap between two token events of one request", stall_ms),
    "lag_ms": Latency("t_send - t_sched", lag_ms),
}

FORMULAS: Mapping[str, str] = {
    "stamps": "monotonic, from the start of the cell: t_sched (plan), t_send (before connect and "
    "write), t_first and t_last (receipt of the first and last event with non-empty content, "
    "reasoning or tool call); N = usage.completion_tokens",
    "window": "requests scheduled in [warm-up, warm-up + duration); in a closed loop, sent in it",
    "offered_per_s": "requests planned in the window / window; in a closed loop, sent in it",
    "achieved_per_s": "requests planned in the window that were sent / window",
    **{name: latency.formula for name, latency in LATENCIES.items()},
    "itl_ms": "each gap g between token events of k = N / events tokens is k samples of g / k",
    "icl_ms": "gaps between token events, as they are",
    "percentile": "nearest rank: the ceil(p n)-th smallest sample; none for n < 1 / (1 - p) (1 for "
    "P50)",
    "with failures": "every failed or missing request is a sample of infinite value",
    "interval": "95 %, by order statistics on n_eff = the lesser of n (1 - r) / (1 + r), r the "
    "lag-1 autocorrelation, and n / D, D = (1 + (m - 1) ICC) (t / z)^2 >= 1: ICC of a one-way "
    "analysis of variance over the k cells (m requests each) of whether a request lies below the "
    "percentile, t and z the 97.5 % points of Student's t (k - 1 degrees) and of the normal "
    "distribution. With fewer than 5 cells D is 1 and the interval is within this run: another "
    "run may differ by more",
    "bootstrap interval": "middle 95 % of 1,000 seeded resamples: of k - 1 of the k cells with "
    "replacement; with fewer than 5 cells, of circular blocks of neighbours, within this run",
    "output_tokens_per_s": "tokens (N / events for each event) received in the window / window",
    "attainment": "requests that succeeded within every limit of the SLO (ttft_user_ms, "
    "e2e_user_ms, tpot_ms) / requests planned in the window; 95 % interval of Clopper-Pearson on "
    "n_eff; a TPOT that is not defined meets its limit if N is 0 or 1, and misses it if N is "
    "unknown",
    "slo_verdict": "pass: the interval of attainment is at or above the target; fail: below it; "
    "else inconclusive; invalid where the row is. Where requests were never sent it is a fail, and "
    "the server's, if the interval of those that were sent lies below the target with all others "
    "counted as met",
    "goodput_per_s": "requests that succeeded within every limit / window",
    "client_cpu_share": "CPU time of a load process until the planned end of a cell / that time; "
    "the highest of any process and cell",
    "little_gap": "|L - lambda W| / L: the pacer's own count of open requests over time, against "
    "the sum of t_end - t_send of the records; the highest of any cell",
    "comparison": "in each block the variant's statistic / the baseline's (repeats: geometric mean "
    "first), of error_rate and attainment the difference; 95 % interval and p_value of no effect "
    "by Student's t over the blocks, on logarithms of ratios; p_sign_flip: share of all sign "
    "patterns of the blocks whose mean is as far from 0; p_adjusted: Holm over all comparisons of "
    "a stage. Where a value is infinite: the sign test of the blocks",
    "change": "same: the interval lies within same_within (shares: 1 point); better or worse: "
    "adjusted p < 5 % and the effect beyond that; else inconclusive",
    "noise_floor": "median ratio (>= 1) of two cells of one variant in one block; needs repeats",
    "saturation": "a rate passes or fails by the interval of attainment, widened (Bonferroni) for "
    "the max_repeats looks it may get, and if those leave it open holds by its point estimate; "
    "the highest rate that holds below the lowest that does not. It is invalid where it fails "
    "only by what the client sent late or not at all, or the client was beyond its limits",
}
"""Every number of a report and how it is made, in the order in which reports print them."""


def meets(record: RequestRecord, slo: Slo) -> bool:
    """Whether a request succeeded within every limit, on the user's clock.

    A limit on the TPOT of fewer than two tokens is met; on that of an unknown number it is not.
    """
    return _within(record, slo, ttft_user_ms, e2e_user_ms)


def meets_as_served(record: RequestRecord, slo: Slo) -> bool:
    """`meets` on the server's clock, from the real send time: what the client did is left out."""
    return _within(record, slo, ttft_service_ms, e2e_service_ms)


def _within(
    record: RequestRecord,
    slo: Slo,
    ttft: Callable[[RequestRecord], float | None],
    e2e: Callable[[RequestRecord], float | None],
) -> bool:
    if record.error is not None:
        return False
    for limit_ms, latency in ((slo.ttft_ms, ttft), (slo.e2e_ms, e2e), (slo.tpot_ms, tpot_ms)):
        if limit_ms is None or (latency is tpot_ms and record.output_tokens in (0, 1)):
            continue
        value = latency(record)
        if value is None or value > limit_ms:
            return False
    return True
