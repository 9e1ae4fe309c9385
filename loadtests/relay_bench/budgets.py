"""What the router may cost, and whether it keeps to it."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from loadtests.relay_bench.engine import OfDirect
from loadtests.relay_bench.figures import LevelFigures, Spread
from loadtests.relay_bench.nouns import CLIENTS, DEPLOYED, PEERS, ROUTER, SAMPLED, TRACED

MAX_TIMES_HAPROXY = 2.5
MAX_ADDED_P50_MS = 4.0
MIN_OF_DIRECT = 0.97
MAX_TIMES_SILENT = 1.10


class Verdict(StrEnum):
    """Of one budget."""

    KEPT = "kept"
    MISSED = "missed"
    NOT_DECIDED = "not decided"
    """Its interval has the limit inside, or there are too few rounds for an interval."""
    NOT_MEASURED = "not measured"


class Finding(msgspec.Struct, frozen=True):
    """One budget: what is allowed, what there is."""

    what: str
    allowed: str
    have: str
    verdict: Verdict


def judge(figures: Sequence[LevelFigures], of_direct: OfDirect | None) -> list[Finding]:
    """Every budget against the medians; one that was not measured says so, and is not kept.

    `of_direct` is the throughput of a real engine through the router over the direct one, whose
    rounds differ by more than the budget leaves: its interval is judged, not its median.
    """
    at = {each.way: each for each in figures if each.clients == CLIENTS}
    router, deployed = at.get(ROUTER), at.get(DEPLOYED)
    router_us, added_ms = _cpu_us(router), _added_ms(router)
    limit = MAX_TIMES_HAPROXY
    findings = [
        _at_most("CPU per token, x the HAProxy pass", limit, _times(router)),
        _at_most("the same behind Serve's ingress", limit, _times(deployed)),
        _at_most("added TTFT P50, ms", MAX_ADDED_P50_MS, added_ms),
        _at_most("the same behind Serve's ingress, ms", MAX_ADDED_P50_MS, _added_ms(deployed)),
    ]
    for told in (TRACED, SAMPLED):
        what = f"CPU per token, x telling nothing: {told}"
        findings.append(_at_most(what, MAX_TIMES_SILENT, _times_silent(at.get(told))))
    for peer in PEERS:
        theirs = at.get(peer)
        findings.append(_below(f"CPU us per token, below {peer}", _cpu_us(theirs), router_us))
        findings.append(_below(f"added TTFT P50 ms, below {peer}", _added_ms(theirs), added_ms))
    return [*findings, _engine(of_direct)]


def _engine(of_direct: OfDirect | None) -> Finding:
    """Kept where the whole interval is at or above the limit, missed where all of it is below."""
    what, allowed = "a real engine's throughput, x direct", f"at least {MIN_OF_DIRECT:g}"
    if of_direct is None:
        return Finding(what, allowed, "-", Verdict.NOT_MEASURED)
    low, high = of_direct.low, of_direct.high
    if low is None or high is None:
        have = f"{of_direct.median:.3f}, no interval: need 6 rounds, have {of_direct.n}"
        return Finding(what, allowed, have, Verdict.NOT_DECIDED)
    verdict = Verdict.NOT_DECIDED
    if low >= MIN_OF_DIRECT:
        verdict = Verdict.KEPT
    elif high < MIN_OF_DIRECT:
        verdict = Verdict.MISSED
    return Finding(what, allowed, f"{of_direct.median:.3f} [{low:.3f}, {high:.3f}]", verdict)


def _cpu_us(each: LevelFigures | None) -> float | None:
    return None if each is None else _median(each.cpu_us_per_token)


def _times(each: LevelFigures | None) -> float | None:
    return None if each is None else _median(each.times_haproxy)


def _times_silent(each: LevelFigures | None) -> float | None:
    return None if each is None else _median(each.times_silent)


def _added_ms(each: LevelFigures | None) -> float | None:
    return None if each is None else _median(each.added_p50_ms)


def _median(value: Spread | None) -> float | None:
    return None if value is None else value.median


def _finding(what: str, allowed: str, have: float | None, kept: bool) -> Finding:
    if have is None:
        return Finding(what, allowed, "-", Verdict.NOT_MEASURED)
    return Finding(what, allowed, f"{have:.3g}", Verdict.KEPT if kept else Verdict.MISSED)


def _at_most(what: str, most: float, have: float | None) -> Finding:
    return _finding(what, f"at most {most:g}", have, have is not None and have <= most)


def _below(what: str, limit: float | None, have: float | None) -> Finding:
    if limit is None:
        return Finding(what, "below theirs", "-", Verdict.NOT_MEASURED)
    return _finding(what, f"below {limit:.3g}", have, have is not None and have < limit)
