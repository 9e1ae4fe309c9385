"""The highest rate at which the SLO holds: what the probes of a search say.

`next_rate` and `saturation_of` are functions of the evidence alone, so that a report finds again
from the records what the search found while it ran.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from loadtests.analyse.attainment import judge, share_of
from loadtests.analyse.distributions import CONFIDENCE, clopper_pearson
from loadtests.analyse.metrics import meets_as_served
from loadtests.analyse.nouns import Probe, Saturation, Share, Verdict
from loadtests.analyse.validity import client_cpu_share, little_gap, of_other_length
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Campaign, Search, Slo, ValidityLimits
from loadtests.records.record import ErrorClass
from serve_app.domain.units import NS_PER_MS

Probes = Mapping[float, Probe]
"""Probes of one variant by rate."""


class Evidence(NamedTuple):
    """What one cell says of its rate: per planned request, in the order of `t_sched`."""

    passes: list[bool]
    """Whether the user's request met the SLO."""
    clears: list[bool]
    """Whether the server is innocent: it met the SLO as served, or the client never sent it."""
    is_clients: bool = False
    """Whether the client broke the validity limits, so that even times as served may be its own."""


def evidence_of(slo: Slo, limits: ValidityLimits, cell: WholeCell) -> Evidence:
    """Evidence of a cell. What the client did is known from `cell.runs`, once the run is over."""
    clears = [
        r.error is ErrorClass.REFUSED_BY_CLIENT or meets_as_served(r, slo) for r in cell.measured
    ]
    clears += [True] * (cell.n_planned - len(clears))
    return Evidence(cell.passes(slo), clears, breaks_limits(limits, cell))


def breaks_limits(limits: ValidityLimits, cell: WholeCell) -> bool:
    """Whether the client's CPU, Little's law or a clock is beyond its limit.

    Late and unsent requests are told apart one by one. False while nothing is known.
    """
    cpu_share = client_cpu_share([cell])
    clock_ms = max((run.clock_error_ns for run in cell.runs), default=0) / NS_PER_MS
    return (
        (cpu_share is not None and cpu_share > limits.client_cpu_share)
        or (bool(cell.runs) and little_gap(cell) > limits.little_gap)
        or clock_ms > limits.clock_error_ms
    )


def probe(rate_per_s: float, cells: Sequence[Evidence], target: float, max_repeats: int) -> Probe:
    """The verdict at one rate, of all its cells together.

    A fail is the server's only if it would be one without what the client did: requests that were
    sent late or not at all. Else the probe is invalid, and so is one that does not pass while the
    client broke its limits. A pass is a pass: the client only took from it.

    A rate is looked at again after each of its cells, `max_repeats` times at most, until one look
    decides: each look's confidence is such that all of them together err in 5 % at most.
    """
    share = _for_looks(share_of([cell.passes for cell in cells]), max_repeats)
    verdict, _ = judge(share, target)
    n_clear = sum(sum(cell.clears) for cell in cells)
    is_innocent = verdict is Verdict.FAIL and n_clear >= target * share.n
    if is_innocent or (verdict is not Verdict.PASS and any(cell.is_clients for cell in cells)):
        verdict = Verdict.INVALID
    return Probe(rate_per_s=rate_per_s, n_cells=len(cells), attainment=share, verdict=verdict)


def _for_looks(share: Share, n_looks: int) -> Share:
    """`share` with the interval of one look of `n_looks` (Bonferroni)."""
    if not share.n or not share.n_eff:
        return share
    k_eff = share.k * share.n_eff / share.n
    low, high = clopper_pearson(k_eff, share.n_eff, 1 - (1 - CONFIDENCE) / n_looks)
    return msgspec.structs.replace(share, low=low, high=high)


def goes_up(found: Probe, target: float) -> bool:
    """Whether the search looks above this rate: by the verdict, or else by the point estimate."""
    if found.verdict is Verdict.INCONCLUSIVE:
        return found.attainment.k >= target * found.attainment.n
    return found.verdict is Verdict.PASS


def bracket(probes: Probes, target: float) -> tuple[float | None, float | None]:
    """The highest rate that holds below every rate that does not, and the lowest that does not."""
    failed = min((r for r, each in probes.items() if not goes_up(each, target)), default=None)
    top = math.inf if failed is None else failed
    held = [r for r, each in probes.items() if r < top and goes_up(each, target)]
    return max(held, default=None), failed


def next_rate(search: Search, probes: Probes, target: float) -> float | None:
    """The rate to try next; None when the search is over.

    First the lowest rate, then the highest, then the geometric middle of the bracket. A rate is
    tried again while its verdict is inconclusive, `max_repeats` times at most. Rates have four
    significant digits, as the names of their stages do.
    """
    for rate, each in probes.items():
        if each.verdict is Verdict.INCONCLUSIVE and each.n_cells < search.max_repeats:
            return rate
    low, high = ends(search)
    held, failed = bracket(probes, target)
    if low not in probes:
        return low
    if held is None or len(probes) >= search.max_probes:
        return None
    if high not in probes:
        return high
    if failed is None or failed <= held * (1 + search.precision):
        return None
    return _middle(held, failed)


def ends(search: Search) -> tuple[float, float]:
    """The lowest and highest rate, as they are tried."""
    return rounded(search.low_per_s), rounded(search.high_per_s)


def rounded(rate_per_s: float) -> float:
    """Four significant digits."""
    return float(f"{rate_per_s:.4g}")


def _middle(held: float, failed: float) -> float | None:
    """The geometric middle; None where no rate of four digits lies between the two."""
    middle = rounded(math.sqrt(held * failed))
    return middle if held < middle < failed else None


def saturation_of(variant: str, search: Search, probes: Probes, target: float) -> Saturation:
    """What the probes of one variant say, be the search over or not."""
    held, failed = bracket(probes, target)
    passed = [
        r for r, p in probes.items() if p.verdict is Verdict.PASS and (not failed or r < failed)
    ]
    sure = max(passed, default=None)
    sure_failed = min((r for r, p in probes.items() if p.verdict is Verdict.FAIL), default=None)
    verdict, reason = _verdict(search, probes, held, failed)
    if verdict is Verdict.PASS and (sure, sure_failed) != (held, failed):
        reason += " (not confirmed): the verdict of an end is by its point estimate"
    return Saturation(
        variant=variant,
        highest_passed_per_s=held,
        lowest_failed_per_s=failed,
        probes=tuple(probes[rate] for rate in sorted(probes)),
        confirmed_pass_per_s=sure,
        confirmed_fail_per_s=sure_failed,
        verdict=verdict,
        reason=reason,
    )


def _verdict(
    search: Search, probes: Probes, held: float | None, failed: float | None
) -> tuple[Verdict, str]:
    if failed is not None and probes[failed].verdict is Verdict.INVALID:
        return Verdict.INVALID, (
            f"at {failed:g}/s the client fell short, not the server (late or unsent requests, "
            "or its CPU, count or clock): more --processes, or a higher in_flight_cap"
        )
    if failed is None:
        if held == ends(search)[1]:
            why = f"even {held:g}/s holds: raise search.high_per_s"
            return Verdict.INCONCLUSIVE, why
        return Verdict.INCONCLUSIVE, "the search did not come to a rate that fails"
    if held is None:
        tried = probes[failed]
        if failed == ends(search)[0]:
            why = f"even {failed:g}/s fails: lower search.low_per_s"
            is_sure = tried.verdict is Verdict.FAIL
            return (Verdict.FAIL if is_sure else Verdict.INCONCLUSIVE), why
        return Verdict.INCONCLUSIVE, "the search did not come to a rate that holds"
    between = f"between {held:g}/s and {failed:g}/s"
    if failed <= held * (1 + search.precision) or _middle(held, failed) is None:
        return Verdict.PASS, between
    limit = f"precision {search.precision:.0%} asked"
    done = f"after {len(probes)} probes" if len(probes) >= search.max_probes else "stopped early"
    return Verdict.INCONCLUSIVE, f"{between}, {done}: {limit}"


def find_saturation(campaign: Campaign, cells: Sequence[WholeCell]) -> tuple[Saturation, ...]:
    """What a search found, from its whole cells; empty for a campaign of stages."""
    search, slo = campaign.search, campaign.slo
    if search is None or slo is None:
        return ()
    evidence: dict[str, dict[float, list[Evidence]]] = {}
    for cell in cells:
        if cell.plan.rate_per_s is not None:
            of_rates = evidence.setdefault(cell.plan.variant, {})
            of_rate = of_rates.setdefault(rounded(cell.plan.rate_per_s), [])
            of_rate.append(evidence_of(slo, campaign.validity, cell))
    found = []
    for name in campaign.variant_names():
        probes = probes_of(search, evidence.get(name, {}), slo.attainment)
        one = saturation_of(name, search, probes, slo.attainment)
        of_variant = [cell for cell in cells if cell.plan.variant == name]
        for reason in of_other_length(campaign, of_variant):
            one = msgspec.structs.replace(one, verdict=Verdict.INVALID, reason=reason)
        found.append(one)
    return tuple(found)


def probes_of(
    search: Search, evidence: Mapping[float, Sequence[Evidence]], target: float
) -> dict[float, Probe]:
    """One probe per rate."""
    return {
        rate: probe(rate, cells, target, search.max_repeats) for rate, cells in evidence.items()
    }
